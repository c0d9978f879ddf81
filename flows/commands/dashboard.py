"""`errata dashboard`: the pages, on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.commands.shared import Json, console, emit_json, reported
from tasks.settings import configure


@reported
def dashboard(
    host: Annotated[str | None, typer.Option(help="Where to listen; default from the settings: this machine alone.")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0: any that is free. Default from the settings.")] = None,
    lineage: Annotated[str | None, typer.Option(help="Lineage shown first; default from the settings.")] = None,
    as_json: Json = False,
) -> None:
    """Pages over the nights, facts, queue, lineages, audit trail and policies; they only read, and never block a night."""
    settings = configure(lineage=lineage)
    import socket

    import uvicorn

    from flows.dashboard.app import create_app
    from flows.dashboard.door import check_door
    from tasks.workspace import publish_newer

    at = settings.dashboard
    host = host or at.host
    check_door(host, at.token.get_secret_value())
    published = publish_newer(settings)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, at.port if port is None else port), family=family) as door:
        url = f"http://{f'[{host}]' if ':' in host else host}:{door.getsockname()[1]}/"
        if as_json:
            emit_json({"url": url, "published": published, "copy": str(settings.published_path)})
        else:
            console.print(f"{url}  (Ctrl-C ends it)", highlight=False)
        config = uvicorn.Config(create_app(settings, host), log_level="warning", access_log=False, server_header=False)
        uvicorn.Server(config).run(sockets=[door])
