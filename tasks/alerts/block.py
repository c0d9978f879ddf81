"""A Prefect block that delivers alerts, so that the server tells them itself: also of a night whose worker is dead.

A server knows this block type where it runs in Errata's environment, by the entry point `prefect.collections`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from prefect.blocks.abstract import NotificationBlock, NotificationError
from pydantic import Field, SecretStr

from tasks.alerts.alert import Alert
from tasks.alerts.delivery import Recipients, deliver


class ErrataAlert(NotificationBlock):
    """Deliver an alert of Errata: signed JSON to a webhook, text to people."""

    _block_type_name = "Errata Alert"
    _block_type_slug = "errata-alert"

    webhook: str = Field(default="", description="Gets the alert as JSON; empty: none.")
    secret: SecretStr = Field(default=SecretStr(""), description="Signs what the webhook gets.")
    addresses: list[SecretStr] = Field(default_factory=list, description="Addresses of Apprise: Slack, mail and the like.")
    timeout: float = Field(default=10.0, description="Seconds of one request.")
    retries: int = Field(default=2, description="Tries of one request after the first.")

    @property
    def recipients(self) -> Recipients:
        addresses = [address.get_secret_value() for address in self.addresses]
        return Recipients(self.webhook, self.secret.get_secret_value(), addresses, self.timeout, self.retries)

    async def notify(self, body: str, subject: str | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Deliver the alert that `body` is the JSON of.

        Raises:
            NotificationError: somebody could not be told.
        """
        alert = Alert.model_validate_json(body)
        problems: list[Any] = await asyncio.to_thread(deliver, alert, self.recipients)
        if problems:
            self.logger.error("%s: %s", subject or alert.title, "; ".join(problems))
            raise NotificationError(log="\n".join(problems))
