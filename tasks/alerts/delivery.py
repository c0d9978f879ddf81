"""Deliver an alert: to a webhook as signed JSON, to people by Apprise (Slack, mail and the like)."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import httpx

from tasks.alerts.alert import Alert
from tasks.settings import AlertSettings
from warehouse.digests import canonical_json
from warehouse.stream.wikidata_http import Backoff, is_loopback, retry_after_s

log = logging.getLogger(__name__)
#: Of the body: `t=SECONDS,v1=HEX`, the HMAC-SHA256 of "SECONDS." and the body as it was sent.
SIGNATURE_HEADER = "X-Errata-Signature"


@dataclass(frozen=True)
class Recipients:
    """Who is told. `addresses` are Apprise's; they hold passwords, and so are never shown. Seconds in `timeout_s`."""

    webhook: str = ""
    secret: str = field(default="", repr=False)
    addresses: Sequence[str] = field(default=(), repr=False)
    timeout_s: float = 10.0
    retries: int = 2

    def __bool__(self) -> bool:
        return bool(self.webhook or self.addresses)


def recipients_of(alerts: AlertSettings) -> Recipients:
    """Those of the settings, with the secret from the environment."""
    addresses = [address.get_secret_value() for address in alerts.addresses]
    secret = os.environ.get(alerts.secret_variable, "")
    return Recipients(alerts.webhook, secret, addresses, alerts.timeout, alerts.retries)


def signature(secret: str, body: bytes, seconds: int) -> str:
    """The value of the header: when it was signed, and by whom no one else could have."""
    made = hmac.new(secret.encode(), f"{seconds}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={seconds},v1={made}"


def deliver(alert: Alert, to: Recipients, sleep: Callable[[float], None] = time.sleep) -> list[str]:
    """Tell everybody once; one who cannot be told keeps no other from it.

    Returns:
        What went wrong, in sentences without a secret; empty where all were told.
    """
    problems = [_post(alert, to, sleep)] if to.webhook else []
    problems += [_tell_people(alert, address) for address in to.addresses]
    return [problem for problem in problems if problem]


def _post(alert: Alert, to: Recipients, sleep: Callable[[float], None]) -> str:
    """Empty where the receiver took it; it is asked again where it was away or too busy."""
    try:
        host = httpx.URL(to.webhook).host
    except httpx.InvalidURL as error:
        return f"alerts.webhook is no address: {error}"
    if not to.secret:
        return f"the webhook at {host} was not told: there is no secret to sign with (alerts.secret_variable)"
    body, pauses, problem = canonical_json(alert), Backoff(base_s=1.0, max_s=10.0), ""
    with httpx.Client(timeout=to.timeout_s, trust_env=not is_loopback(host)) as client:
        for attempt in range(1, to.retries + 2):
            asked_s = None
            headers = {"Content-Type": "application/json", SIGNATURE_HEADER: signature(to.secret, body, int(time.time()))}
            try:
                answer = client.post(to.webhook, content=body, headers=headers)
                if answer.is_success:
                    return ""
                problem, asked_s = f"HTTP {answer.status_code}", retry_after_s(answer)
                if answer.status_code != 429 and answer.status_code < 500:
                    break
            except httpx.HTTPError as error:
                problem = type(error).__name__
            if attempt <= to.retries:
                sleep(pauses.pause_s(attempt, asked_s))
    return f"the webhook at {host} was not told: {problem}"


def _tell_people(alert: Alert, address: str) -> str:
    # Imported here: it takes a tenth of a second and most nights tell nobody.
    from apprise import Apprise

    scheme, people = address.partition(":")[0], Apprise()
    if not people.add(address):
        return f"alerts.addresses: a {scheme} address is none that Apprise knows"
    return "" if people.notify(body=alert.text, title=alert.title) else f"nobody was told by {scheme}: it refused or is away"
