"""Every page over real nights and over many: it is whole, small, safe, and its links and files hold."""

from __future__ import annotations

import csv
import html
import io
import re
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest
from fastapi.testclient import TestClient
from markupsafe import escape

from flows.dashboard.app import HERE, PAGES
from tests.documents import wrong_in
from tests.flows.dashboard.conftest import GENERATED_NIGHTS, Shown
from tests.flows.dashboard.generated import MARKUP
from warehouse.records import Record

NAMES = ("overview", "nights", "night", "record", "facts", "fact", "queue", "lineage", "leaderboards", "audit", "entry",
         "policies", "policy")  # fmt: skip
MOST_BYTES = 100_000
OF_A_SHAPE = 3


class Found(HTMLParser):
    """What a page refers to, and which elements it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.elements: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        for name, value in attrs:
            if name.startswith("on") or name == "style":
                self.handlers.append(f"{tag} {name}")
            if name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("href", "src", "srcset", "action", "data"):
                self.loaded.append(value or "")


def crawl(client: TestClient, start: str) -> dict[str, int]:
    """Status of what links lead to from `start` on; of addresses that differ only in what they name, of the first few."""
    waiting, seen, alike = [start], {}, Counter()
    while waiting:
        address = waiting.pop(0).partition("#")[0]
        shape = re.sub(r"=[^&]*|[^/?]*\d[^/?]*", "=", address)
        if address in seen or alike[shape] == OF_A_SHAPE:
            continue
        alike[shape] += 1
        answer = client.get(address)
        seen[address] = answer.status_code
        if answer.headers["content-type"].startswith("text/html") and not address.endswith("/evidently"):
            waiting += [urljoin(address, link) for link in Found(answer.text).links if not link.startswith("#")]
    return seen


def test_every_page_has_an_address_here(real_nights: Shown) -> None:
    assert tuple(real_nights.addresses()) == NAMES
    assert len(NAMES) == len(PAGES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_of_real_nights_is_whole_small_and_loads_only_its_own(real: TestClient, real_nights: Shown, name: str) -> None:
    answer = real.get(real_nights.addresses()[name])
    found = Found(answer.text)
    assert answer.status_code == 200
    assert len(answer.content) < MOST_BYTES
    assert "script" not in found.elements and not found.handlers
    assert all(address.startswith("/") and not address.startswith("//") for address in found.loaded)
    assert "</html>" in answer.text


@pytest.mark.parametrize("name", NAMES)
def test_a_page_of_many_nights_is_small(many: TestClient, many_nights: Shown, name: str) -> None:
    answer = many.get(many_nights.addresses()[name])
    assert answer.status_code == 200
    assert len(answer.content) < MOST_BYTES


def test_curves_of_many_nights_fit_a_page(many: TestClient) -> None:
    answer = many.get("/?nights=180")
    assert answer.text.count("<polyline") == 7
    assert len(answer.content) < MOST_BYTES


def test_every_link_from_the_overview_on_holds(real: TestClient) -> None:
    seen = crawl(real, "/")
    assert not {address: code for address, code in seen.items() if code != 200}
    assert {"/nights/main/night-01", "/nights/main/night-01/evidently", "/lineage/careful", "/nights/careful/night-01"} <= set(
        seen
    )
    assert len(seen) > 60


@pytest.mark.parametrize("name", NAMES)
def test_each_table_is_behind_its_page_as_csv_and_json(real: TestClient, real_nights: Shown, name: str) -> None:
    text = real.get(real_nights.addresses()[name]).text
    files = sorted({html.unescape(link) for link in Found(text).links if link.startswith("/data/")})
    assert len(files) % 2 == 0
    # Nothing waits in the queue of these nights.
    if name not in ("record", "entry", "queue"):
        assert files
    for address in files:
        answer = real.get(address)
        assert answer.status_code == 200, address
        if ".csv" in address:
            rows = list(csv.DictReader(io.StringIO(answer.text)))
            other = real.get(address.replace(".csv", ".json")).json()
            assert len(rows) == len(other["rows"]) and list(rows[0]) == list(other["rows"][0])
            assert int(answer.headers["x-total-count"]) == other["total"]


def test_a_file_has_all_rows_of_a_long_table(many: TestClient) -> None:
    assert many.get("/nights").text.count("<tr>") == 26
    assert len(many.get("/data/nights/nights.json").json()["rows"]) == GENERATED_NIGHTS
    assert [row["verdict"] for row in many.get("/data/nights/nights.json?verdict=hold").json()["rows"]] == ["hold", "hold"]


def test_a_long_table_comes_page_by_page(many: TestClient) -> None:
    pages = [re.findall(r">(night-[\d-]+)</a>", many.get(f"/nights?page={number}").text) for number in (1, 2, 3)]
    assert [len(names) for names in pages] == [25, 25, 20]
    assert sorted({name for names in pages for name in names}, reverse=True) == [name for names in pages for name in names]


@pytest.mark.parametrize("name", NAMES)
def test_no_label_becomes_markup(many: TestClient, real: TestClient, many_nights: Shown, real_nights: Shown, name: str) -> None:
    for client, shown in ((many, many_nights), (real, real_nights)):
        text = client.get(shown.addresses()[name]).text
        assert MARKUP not in text
        assert "script" not in Found(text).elements


def test_a_label_that_is_markup_is_shown_as_text(many: TestClient, real: TestClient) -> None:
    shown = str(escape(MARKUP))
    asked = (many.get("/fact?subject=Q8000"), many.get("/facts?q=alert"), many.get("/nights/main/night-2023-01-10"),
             real.get("/nights/main/night-02"))  # fmt: skip
    for answer in asked:
        assert shown in answer.text, answer.url
    assert str(escape('"><script>')) in many.get("/facts", params={"q": '"><script>'}).text


def test_what_a_search_looks_for_is_found(real: TestClient) -> None:
    text = real.get("/facts?q=aDALbert").text
    assert "Adalbert of Prague" in text
    fact = real.get("/fact?subject=Q243427").text
    assert "errata revert " in fact and "--lineage main" in fact
    assert "religion or worldview" in fact and "Islam" in fact


def test_a_fact_is_followed_at_the_newest_checkpoints_and_around_its_own_edits(
    many: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nights() -> list[str]:
        rows = many.get("/data/fact/answers.json?subject=Q8000").json()["rows"]
        return list(dict.fromkeys(row["night"] for row in rows))

    every = nights()
    assert every[-2:] == ["night-2023-01-10", "night-2023-01-08"] and len(every) > 10
    monkeypatch.setattr("warehouse.dashboard.fact.MOST_CHECKPOINTS", 3)
    assert set(nights()) < set(every)
    assert nights()[-2:] == every[-2:]


def test_answers_of_a_night_can_be_searched(real: TestClient) -> None:
    address = "/data/nights/main/night-01/answers.json"
    every = real.get(f"{address}?all=1").json()["rows"]
    some = real.get(f"{address}?all=1&q=directx").json()["rows"]
    assert 0 < len(some) < len(every)
    assert all("directx" in " ".join(map(str, row.values())).casefold() for row in some)
    changed = real.get(address).json()["rows"]
    assert changed and all(row["before"] != row["after"] for row in changed)
    kinds = {row["kind"] for row in real.get(f"{address}?all=1&kind=success").json()["rows"]}
    assert kinds == {"success"}


def test_a_night_shows_its_funnel_its_rules_and_its_time(real: TestClient) -> None:
    base = "/data/nights/main/night-01"
    funnel = {row["step"]: row["number"] for row in real.get(f"{base}/funnel.json").json()["rows"]}
    assert funnel == {"received": 4, "judged": 4, "accepted": 3, "requests": 3, "edited": 3, "decided": 3, "applied": 3}
    (rule,) = real.get(f"{base}/gate.json").json()["rows"]
    assert (rule["metric"], rule["threshold"], rule["passed"]) == ("perplexity_ratio", 1000.0, True)
    times = {row["state"]: row["seconds"] for row in real.get(f"{base}/times.json").json()["rows"]}
    assert list(times) == ["received", "validated", "edited", "evaluated", "decided", "published"]
    seconds = real.get("/data/nights/nights.json").json()["rows"][-1]["seconds"]
    assert sum(times.values()) == pytest.approx(seconds, abs=0.1)


def test_a_rejected_night_says_which_rule_failed(real: TestClient) -> None:
    text = real.get("/nights/careful/night-01").text
    assert '<span class="verdict reject">reject</span>' in text
    assert '<p class="notice">reject: SR ' in text


def test_the_overview_says_what_is_served_and_what_servers_said(real: TestClient) -> None:
    text = real.get("/").text
    assert '<a href="/nights/main/night-02">' in text
    assert "64 of 64 canaries agree." in text
    assert re.search(r"made (just now|\d+ minutes? ago)", text)


def test_a_day_without_a_night_is_missing(many: TestClient) -> None:
    strip = many.get("/data/overview/nights.json").json()["rows"]
    assert len(strip) == 30
    missing = [row["night"] for row in strip if row["verdict"] == "missing"]
    assert len(missing) == 4
    assert many.get("/").text.count('class="mark missing"') == 4


def test_a_base_without_a_night_says_what_to_run(tmp_path_factory: pytest.TempPathFactory) -> None:
    from tasks.settings import configure
    from tasks.workspace import publish_copy, warehouse
    from tests.flows.dashboard.conftest import client_of

    settings = configure({"home": str(tmp_path_factory.mktemp("empty") / "home")})
    client = client_of(Shown(settings, "", "", ""))
    assert client.get("/").status_code == 404
    assert "errata warehouse publish" in client.get("/").text
    with warehouse(settings):
        pass
    assert publish_copy(settings)
    with client:
        for address in ("/", "/nights", "/facts", "/queue", "/lineage/main", "/audit", "/policies", "/leaderboards"):
            assert client.get(address).status_code == (404 if address.startswith("/lineage") else 200), address
        assert "errata refresh" in client.get("/").text


@pytest.mark.parametrize(
    ("address", "code"),
    [
        ("/nights/main/night-99", 404), ("/nights/nobody/night-01", 404), ("/fact?subject=Q0", 404), ("/fact", 404),
        ("/record?source=x&id=y", 404), ("/policies/abc", 404), ("/audit/999999", 404), ("/audit/x", 404),
        ("/nights?page=0", 400), ("/nights?page=-1", 400), ("/nights?page=x", 400), ("/nights?verdict=odd", 400),
        ("/?nights=1000", 400), ("/leaderboards?setting=900", 404), ("/data/nights/none.csv", 404),
        ("/data/nights/nights.xml", 404), ("/static/../app.py", 404), ("/nights/main/night-02/evidently", 404),
        ("/nights/main/..%2F..%2Fevidently", 404), ("/openapi.json", 404), ("/docs", 404),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(real: TestClient, address: str, code: int) -> None:
    assert real.get(address).status_code == code


def test_the_evidently_page_is_one_click_away_in_an_origin_of_its_own(real: TestClient) -> None:
    assert 'href="/nights/main/night-01/evidently"' in real.get("/nights/main/night-01").text
    answer = real.get("/nights/main/night-01/evidently")
    assert answer.status_code == 200 and len(answer.content) > MOST_BYTES
    assert answer.headers["content-security-policy"].startswith("sandbox allow-scripts;")


def test_every_command_that_a_page_names_can_be_typed(real: TestClient, real_nights: Shown) -> None:
    pages = [real.get(address).text for address in real_nights.addresses().values()]
    advised = {html.unescape(line) for text in pages for line in re.findall(r"<code>(errata [^<]*)</code>", text)}
    advised |= {line for path in HERE.rglob("*.html") for line in re.findall(r"<code>(errata [^<{]*)</code>", path.read_text())}
    assert len(advised) > 5
    assert not {line: why for line in advised if (why := wrong_in(line))}


def test_a_policy_shows_what_changed_since_the_one_before() -> None:
    from warehouse.dashboard.proof import policy_changes
    from warehouse.records import GatePolicy, GateRule

    kept = GateRule(metric="GR", op=">=", threshold=0.7)
    old = GatePolicy(
        name="p",
        version=1,
        rules=(kept, GateRule(metric="SR", op=">=", threshold=0.9), GateRule(metric="KL", op="<=", threshold=1)),
    )
    new = GatePolicy(
        name="p",
        version=2,
        rules=(kept, GateRule(metric="SR", op=">=", threshold=0.95), GateRule(metric="DD", op="<=", threshold=1)),
    )
    assert [(c.metric, c.change) for c in policy_changes(old, new)] == [("SR", "changed"), ("DD", "added"), ("KL", "removed")]


def test_a_cell_that_a_spreadsheet_would_run_is_quoted() -> None:
    from flows.dashboard.sheets import as_csv

    class Row(Record):
        text: str
        number: float

    assert as_csv([Row(text="=1+1", number=-1.0), Row(text="@x", number=2.0)]) == "text,number\r\n'=1+1,-1.0\r\n'@x,2.0\r\n"
