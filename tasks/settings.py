"""One typed object for every setting, read once: environment `ERRATA_*`, then `errata.toml`, then defaults."""

from __future__ import annotations

import codecs
import json
import os
import tomllib
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from tasks.home import ensure_home, exempt_loopback, expanded, place_caches
from warehouse.errors import UsageError, problems
from warehouse.limits import Limits
from warehouse.reference import HERE as REFERENCE

CONFIG_FILE = "errata.toml"
EMBEDDED = str(REFERENCE / "model")
#: A path, or a name that may be one (a model, a store, a policy, a key): its `~` is resolved once, here, for everybody.
PathText = Annotated[str, AfterValidator(expanded)]


def _device_map(text: str) -> str:
    if text in ("", "auto"):
        return text
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(where, str) for where in found.values()) or not found:
        raise ValueError('is `auto`, or a JSON object such as {"model.embed_tokens": "cuda:0", "model.layers.0": "cpu", ...}')
    return text


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Section):
    """The base model: a local folder, a `.gguf` file, or a hub id with a pinned revision, and how it is asked.

    `dtype` auto: the one that the checkpoint is stored in. `device` auto: a GPU where there is one, else the CPU.
    `device_map`, for a model that does not fit on one device: `auto`, or a JSON object of modules and devices as accelerate
    writes it. `device` has no part in it then.
    `form` auto: in every form that the model is competent in, as measured on calibration facts; else in that one alone.
    """

    name: PathText = EMBEDDED
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "cpu"
    device_map: Annotated[str, AfterValidator(_device_map)] = ""
    trust_remote_code: bool = False
    form: Literal["auto", "plain", "few_shot", "few_shot_questions", "chat"] = "auto"


class EditorSettings(_Section):
    """Which editor, with which numbers over its preset, and how many requests make one batch (0: the whole night)."""

    name: str = "ledger"
    overrides: dict[str, Any] = Field(default_factory=dict)
    batch_size: int = 0


class SourceSettings(_Section):
    """Where updates come from: `recorded` nights, `knowedit` files, `benchmark` files in their published shapes, `requests`
    (newline-delimited JSON), or `wikidata`: only the nights that `errata ingest wikidata` brought, which need no path.

    `task` names what content cannot tell: a format of `benchmark`, or a KnowEdit task of a file with another name."""

    kind: Literal["recorded", "knowedit", "benchmark", "requests", "wikidata"] = "recorded"
    path: PathText = str(REFERENCE / "nights")
    task: str = ""


class WikidataSettings(_Section):
    """The live source. Nothing is sent to a host that is not in `hosts`; times are in seconds.

    `contact` (an address or a URL) goes into the User-Agent: Wikimedia asks for it and blocks clients without.
    `properties` empty: those that the warehouse knows; "all": every property.
    """

    stream_url: str = "https://stream.wikimedia.org/v2/stream/recentchange"
    entity_url: str = "https://www.wikidata.org"
    hosts: tuple[str, ...] = ("stream.wikimedia.org", "www.wikidata.org")
    contact: str = ""
    wiki: str = "wikidatawiki"
    properties: tuple[str, ...] = ()
    maxlag: PositiveInt = 5
    retries: PositiveInt = 5
    connect_timeout: PositiveFloat = 10.0
    read_timeout: PositiveFloat = 60.0
    backoff: PositiveFloat = 5.0
    backoff_max: PositiveFloat = 300.0
    flush: PositiveFloat = 5.0
    batch: PositiveInt = 500


class SigningSettings(_Section):
    """Signatures of promoted checkpoints: keys as paths or as PEM text (`ERRATA_SIGNING__PRIVATE_KEY`).

    `trusted`: public keys whose signatures `errata pull` and `errata audit` accept, beside the private key's own.
    """

    private_key: PathText = Field(default="", repr=False)
    trusted: tuple[PathText, ...] = ()


class ServingSettings(_Section):
    """The plain model that a promotion writes, and how what is served is proved.

    `dtype` auto: that of the base's own checkpoint. `reserve`: slots that every layer has room for, so that shapes stay from
    night to night; 0: no more than there are. `canaries`: questions that each promotion keeps to prove a server; 0: none.

    `urls`: servers that are asked after each promotion, until they give its answers or `deadline` seconds are over. Then,
    `on_mismatch`: `warn`; `hold`: no further night of the lineage until a check passes; `roll_back`: the channel goes back.
    `weights`: compare the digests of an engine's weights too, where it shows them; it reads all of them each time.
    `agreement`: share of the edits, and of the bystanders, that a server must answer as the promoted checkpoint did.
    `key_variable`: the environment variable that holds the servers' key. `timeout` of one request and `deadline` in seconds.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    reserve: NonNegativeInt = 256
    canaries: NonNegativeInt = 64
    urls: tuple[str, ...] = ()
    model: str = ""
    deadline: PositiveFloat = 300.0
    on_mismatch: Literal["warn", "hold", "roll_back"] = "warn"
    weights: bool = False
    agreement: Annotated[float, Field(gt=0, le=1)] = 1.0
    key_variable: str = "ERRATA_SERVING_KEY"
    timeout: PositiveFloat = 60.0
    retries: NonNegativeInt = 2


class ProbeSettings(_Section):
    """Sizes of the probe sets of a night, and how many bytes of the home may keep what proves answers; 0: all are asked."""

    per_request: PositiveInt = 4
    drawdown: PositiveInt = 800
    held_texts: PositiveInt = 40
    generations: PositiveInt = 24
    proof_bytes: NonNegativeInt = 1 << 32
    seed: int = 0


class AlertSettings(_Section):
    """Who hears of a night that does not serve: one that was rejected, held or broken, is late, or never came.

    `webhook` gets the alert as JSON, signed with the secret that the variable `secret_variable` holds; `addresses` get it as
    text, each an address of Apprise (Slack's own webhook, `mailtos://`, ...). `link`: where a person reads on; `{lineage}` and
    `{night}` in it are filled in. A night is late `within` hours after its scheduled hour, and one is missing `every` hours
    after the one before. `timeout` of one request in seconds; it is tried `retries` times again.
    """

    webhook: str = ""
    secret_variable: str = "ERRATA_ALERTS_SECRET"
    addresses: tuple[SecretStr, ...] = ()
    link: str = ""
    within: PositiveFloat = 4.0
    every: PositiveFloat = 26.0
    timeout: PositiveFloat = 10.0
    retries: NonNegativeInt = 2


class DashboardSettings(_Section):
    """Where `errata dashboard` listens. `token`: what a reader must know (`ERRATA_DASHBOARD__TOKEN`); beyond loopback one is
    required."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8484
    token: SecretStr = SecretStr("")


class _TomlFile(TomlConfigSettingsSource):
    """`errata.toml`, also with the mark that some editors put before UTF-8; what cannot be read is named with the file."""

    def _read_file(self, file_path: Path | Traversable) -> dict[str, Any]:
        try:
            data = file_path.read_bytes()
            if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise ValueError("this is UTF-16 text; save it as UTF-8")
            return tomllib.loads(data.decode("utf-8-sig"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{file_path} cannot be read: {error}") from error


class Settings(BaseSettings):
    """All settings; `errata config show` prints them with where each came from."""

    model_config = SettingsConfigDict(
        env_prefix="ERRATA_", env_nested_delimiter="__", toml_file=CONFIG_FILE, extra="forbid", frozen=True
    )

    home: Annotated[Path, AfterValidator(lambda path: Path(expanded(str(path))))] = Path(".errata")
    lineage: str = "main"
    store: PathText = ""
    policy: PathText = "nightly"
    channel: str = ""
    #: A user's own property templates (shaped as `warehouse/reference/templates.yaml`), laid over the embedded ones.
    templates: PathText = ""
    #: A user's own property table, property documents, or a folder of them, laid over `warehouse/reference/properties.csv`.
    properties: PathText = ""
    model: ModelSettings = ModelSettings()
    editor: EditorSettings = EditorSettings()
    source: SourceSettings = SourceSettings()
    wikidata: WikidataSettings = WikidataSettings()
    probes: ProbeSettings = ProbeSettings()
    signing: SigningSettings = SigningSettings()
    serving: ServingSettings = ServingSettings()
    alerts: AlertSettings = AlertSettings()
    dashboard: DashboardSettings = DashboardSettings()
    #: Of patches and pulled folders; see `warehouse/limits.py`.
    limits: Limits = Limits()
    #: Who is written into the audit trail; default: the login name.
    actor: str = ""
    threads: int = 0
    telemetry: bool = False
    seed: int = 0

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, _TomlFile(settings_cls)

    @property
    def is_embedded(self) -> bool:
        """Is the base the embedded reference model? It is asked plainly, as it was trained, about its own world alone."""
        return self.model.name == EMBEDDED

    @property
    def warehouse_path(self) -> Path:
        return self.home / "warehouse.duckdb"

    @property
    def published_path(self) -> Path:
        """The copy of the warehouse that readers have open as long as they like."""
        return self.home / "published" / "warehouse.duckdb"

    @property
    def store_url(self) -> str:
        return self.store or str(self.home / "store")

    @property
    def channel_name(self) -> str:
        """The production channel of a lineage: `production` for the main one, else `production-LINEAGE`."""
        return self.channel or ("production" if self.lineage == "main" else f"production-{self.lineage}")

    @property
    def work(self) -> Path:
        """Scratch space of this lineage's nights; safe to delete between runs."""
        return self.home / "work" / self.lineage

    @property
    def preparations(self) -> Path:
        return self.home / "preparations"

    @property
    def proofs(self) -> Path:
        """What proves answers; safe to delete."""
        return self.home / "proofs"

    @property
    def presets(self) -> Path:
        """Numbers that were found on models (`errata prepare --auto`)."""
        return self.home / "presets"

    @property
    def reports(self) -> Path:
        return self.home / "reports"


def origins(settings: Settings) -> dict[str, str]:
    """For every setting, dotted: `environment`, `errata.toml` or `default`."""
    toml: dict[str, Any] = {}
    if Path(CONFIG_FILE).exists():
        toml = _TomlFile(Settings)()
    environment = {k[len("ERRATA_") :].lower().replace("__", ".") for k in os.environ if k.startswith("ERRATA_")}

    def walk(prefix: str, value: Any, in_toml: Any) -> dict[str, str]:
        if isinstance(value, BaseModel):
            found: dict[str, str] = {}
            for name in type(value).model_fields:
                inner = in_toml.get(name) if isinstance(in_toml, dict) else None
                found |= walk(f"{prefix}.{name}" if prefix else name, getattr(value, name), inner)
            return found
        if any(name == prefix or prefix.startswith(name + ".") for name in environment):
            return {prefix: "environment"}
        return {prefix: CONFIG_FILE if in_toml is not None else "default"}

    return walk("", settings, toml)


def silence_telemetry(settings: Settings) -> None:
    """Switch every library's telemetry off, unless the user turned it on; called before those libraries load."""
    exempt_loopback()
    place_caches(settings.home)
    # Prefect keeps its state with ours, so that a home is one folder.
    os.environ.setdefault("PREFECT_HOME", str((settings.home / "prefect").absolute()))
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "tasks,editors,checks,warehouse")
    if settings.telemetry:
        return
    off = {
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "GX_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "90",
        "TOKENIZERS_PARALLELISM": "false",
    }
    for name, value in off.items():
        os.environ.setdefault(name, value)


def configure(
    config: Mapping[str, Any] | None = None, *, lineage: str | None = None, editor: str | None = None, writes: bool = True
) -> Settings:
    """Settings with `config` (shaped as `errata.toml`) and the two names that a night is usually run with on top.

    Args:
        writes: the home is needed, so it is made. What only shows something (`--help`, `errata config show`) goes without.

    Raises:
        UsageError: an unknown or ill-typed setting, a file that is no TOML, or a home that cannot be written; the message
            names it.
        NoHomeFolder: a path begins with a home folder that is not known.
    """
    values: dict[str, Any] = dict(config or {})
    if lineage is not None:
        values["lineage"] = lineage
    if editor is not None:
        values["editor"] = {**values.get("editor", {}), "name": editor}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise UsageError(f"settings ({CONFIG_FILE}, ERRATA_* variables): {problems(error)}") from error
    except SettingsError as error:
        raise UsageError(f"settings (ERRATA_* variables): {error}; expected JSON") from error
    silence_telemetry(settings)
    if writes:
        ensure_home(settings.home)
    return settings
