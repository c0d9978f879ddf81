"""The dashboard as an ASGI application: pages, their tables as CSV and JSON, and no route that writes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from flows.dashboard import addresses
from flows.dashboard.asking import MakePage, Page, Visit, evidently_page
from flows.dashboard.door import REPORT_POLICY, Door
from flows.dashboard.pages.facts import fact, facts
from flows.dashboard.pages.leaderboards import leaderboards
from flows.dashboard.pages.lineage import lineage
from flows.dashboard.pages.nights import night, nights, record
from flows.dashboard.pages.overview import age_words, overview
from flows.dashboard.pages.proof import audit, entry, policies, policy
from flows.dashboard.pages.queue import queue
from flows.dashboard.sheets import Sheet, as_csv, shown, value_of
from tasks.settings import Settings
from warehouse.dashboard.overview import lineage_or_default
from warehouse.dashboard.published import PublishedCopy
from warehouse.errors import NotFound, UsageError, WarehouseError
from warehouse.lineages.chain import lineages
from warehouse.night_names import check_name

HERE = Path(__file__).parent
#: Address -> what makes the page.
PAGES: dict[str, MakePage] = {
    "/": overview,
    "/nights": nights,
    "/nights/{lineage}/{night}": night,
    "/record": record,
    "/facts": facts,
    "/fact": fact,
    "/queue": queue,
    "/lineage/{lineage}": lineage,
    "/leaderboards": leaderboards,
    "/audit": audit,
    "/audit/{seq}": entry,
    "/policies": policies,
    "/policies/{digest}": policy,
}
EVIDENTLY = "/nights/{lineage}/{night}/evidently"
STATIC = {"style.css": "text/css", "icon.svg": "image/svg+xml"}


@dataclass(frozen=True)
class Shelf:
    """What all pages are made from: the copy, the settings, the templates."""

    copy: PublishedCopy
    settings: Settings
    templates: Environment

    def trouble(self, error: WarehouseError | UsageError) -> HTMLResponse:
        """The page that says what went wrong."""
        code = _code(error)
        return HTMLResponse(self.templates.get_template("trouble.html").render(code=code, error=error), code)

    @asynccontextmanager
    async def open_while(self, _: FastAPI) -> AsyncIterator[None]:
        """Closes the copy when the application ends: a process has a DuckDB file open once."""
        yield
        self.copy.close()


def create_app(settings: Settings, host: str | None = None) -> FastAPI:
    """The application over the published copy of the settings' home.

    Args:
        host: where it will listen; default from the settings.
    """
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    templates.globals |= {"at": addresses, "shown": shown, "value_of": value_of}
    shelf = Shelf(PublishedCopy(settings.published_path), settings, templates)
    # No page of its own that describes the routes: it would fetch scripts from elsewhere.
    app = FastAPI(title="Errata", docs_url=None, redoc_url=None, openapi_url=None, lifespan=shelf.open_while)
    app.middleware("http")(Door(host or settings.dashboard.host, settings.dashboard.token.get_secret_value()))
    for path, make in PAGES.items():
        _add(app, path, _html(shelf, make))
        _add(app, _files(path) + "/{sheet}.{form}", _file(shelf, make))
    _add(app, EVIDENTLY, _evidently(shelf))
    _add(app, "/static/{name}", _static)
    return app


def _add(app: FastAPI, path: str, answer: Callable[[Request], Response]) -> None:
    app.add_api_route(path, answer, methods=["GET", "HEAD"], response_class=Response, response_model=None)


def _files(path: str) -> str:
    return "/data" + ("/overview" if path == "/" else path)


# ------------------------------------------------------------ answers


def _html(shelf: Shelf, make: MakePage) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        try:
            with shelf.copy.reading() as wh:
                asked = _asked(shelf, wh, request, request.url.path)
                return HTMLResponse(_render(shelf, asked, make(asked)))
        except (WarehouseError, UsageError) as error:
            return shelf.trouble(error)

    return answer


def _file(shelf: Shelf, make: MakePage) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        name, form = request.path_params["sheet"], request.path_params["form"]
        try:
            if form not in ("csv", "json"):
                raise NotFound(f"no form {form!r} of a table; there are csv and json")
            with shelf.copy.reading() as wh:
                asked = _asked(shelf, wh, request, request.url.path, for_file=True)
                page = make(asked)
            sheet = page.sheet(name)
            if sheet is None:
                raise NotFound(f"this page has no table {name!r}; it has {', '.join(s.name for s in page.sheets) or 'none'}")
        except (WarehouseError, UsageError) as error:
            return JSONResponse({"error": type(error).__name__, "message": str(error)}, _code(error))
        total = len(sheet.rows) if sheet.total is None else sheet.total
        if form == "csv":
            download = {"Content-Disposition": f'attachment; filename="{name}.csv"', "X-Total-Count": str(total)}
            return Response(as_csv(sheet.rows), media_type="text/csv; charset=utf-8", headers=download)
        rows = [row.model_dump(mode="json") for row in sheet.rows]
        return JSONResponse({"table": name, "total": total, "page": asked.page, "rows": rows})

    return answer


def _evidently(shelf: Shelf) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        try:
            lineage, night = (check_name(request.path_params[name]) for name in ("lineage", "night"))
        except UsageError as error:
            return shelf.trouble(error)
        path = evidently_page(shelf.settings.reports, lineage, night)
        if not path.is_file():
            return shelf.trouble(NotFound(f"night {night!r} of lineage {lineage!r} has no Evidently page here"))
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    return answer


def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        return Response("not found\n", 404, media_type="text/plain")
    return FileResponse(HERE / "static" / name, media_type=STATIC[name], headers={"Cache-Control": "max-age=300"})


def _code(error: WarehouseError | UsageError) -> int:
    return 404 if isinstance(error, NotFound) else 400 if isinstance(error, UsageError) else 503


# ------------------------------------------------------------ questions and pages


def _asked(shelf: Shelf, wh: Any, request: Request, path: str, *, for_file: bool = False) -> Visit:
    names = lineages(wh)
    named: Mapping[str, str] = request.path_params
    wanted = named.get("lineage", request.query_params.get("lineage", ""))
    return Visit(
        wh=wh,
        path=path,
        named=named,
        query=dict(request.query_params),
        lineages=tuple(names),
        lineage=lineage_or_default(names, wanted, shelf.settings.lineage),
        reports=shelf.settings.reports,
        for_file=for_file,
    )


def _render(shelf: Shelf, asked: Visit, page: Page) -> str:
    def file_of(sheet: Sheet, form: str) -> str:
        query = {name: value for name, value in asked.query.items() if name != "page"}
        return addresses.with_query(f"{_files(asked.path)}/{sheet.name}.{form}", **query)

    made, now = shelf.copy.published_at(), datetime.now(UTC)
    return shelf.templates.get_template(page.template).render(
        page=page, asked=asked, file_of=file_of, sheets={sheet.name: sheet for sheet in page.sheets}, made=made,
        age=age_words(made, now), since=lambda then: age_words(then, now), **page.values,
    )  # fmt: skip
