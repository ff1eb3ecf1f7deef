"""Applies changed settings while the gateway runs: all that can change, or none."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import KW_ONLY, dataclass

from structlog.typing import FilteringBoundLogger

from lcp_gateway.app.wiring import WiringError
from lcp_gateway.config import ConfigError, Loaded, Settings, specs
from lcp_gateway.http.server.tls import BadCertificate
from lcp_gateway.supervisor.messages import ReloadResult
from lcp_gateway.supervisor.reloading import log_refusal, log_reload
from lcp_gateway.supervisor.systemd import Notifier

_TLS = ("http_tls_cert", "http_tls_key")


def changes(before: Settings, after: Settings) -> tuple[list[str], list[str]]:
    """Return the names of the settings that differ: those that a reload applies, and those that need a restart."""
    changed = {name: spec for name, spec in specs().items() if getattr(before, name) != getattr(after, name)}
    restart = [name for name, spec in changed.items() if spec.restart]
    if (before.http_tls_cert is None) is not (after.http_tls_cert is None):
        # An address serves either HTTP or HTTPS.
        restart += [name for name in _TLS if name in changed]
    return [name for name in changed if name not in restart], restart


@dataclass(slots=True, eq=False)
class Reload:
    """Reads the settings again each time that ``wanted`` is set; ``settings`` are those in force.

    ``read`` returns the settings as they are now. ``renew`` applies settings and returns the names of those whose files
    have changed; where it fails, nothing has changed.
    """

    settings: Settings
    _: KW_ONLY
    wanted: asyncio.Event
    read: Callable[[], Loaded]
    renew: Callable[[Settings], Awaitable[Collection[str]]]
    notifier: Notifier
    log: FilteringBoundLogger

    async def run(self) -> None:
        """Reload on demand, until cancelled."""
        while True:
            await self.wanted.wait()
            self.wanted.clear()
            self.notifier.reloading()
            try:
                result = await self._reload()
                if result.problems:
                    log_refusal(self.log, result.problems)
                else:
                    log_reload(self.log, result)
            finally:
                self.notifier.ready()

    async def _reload(self) -> ReloadResult:
        try:
            # Files may lie on a slow disk: streams go on meanwhile.
            loaded = await asyncio.to_thread(self.read)
        except ConfigError as error:
            return ReloadResult(problems=error.problems)
        except Exception as error:  # noqa: BLE001 - a gateway that serves must not end because of its settings
            return self._unexpected(error)
        return await self.take(loaded)

    async def take(self, loaded: Loaded) -> ReloadResult:
        """Take settings that were read: all that can change while the gateway runs, or none. Raises nothing."""
        try:
            changed, restart = changes(self.settings, loaded.settings)
            settings = loaded.keeping(self.settings, restart)
            renewed = await self.renew(settings)
        except ConfigError as error:
            return ReloadResult(problems=error.problems)
        except (WiringError, BadCertificate) as error:
            return ReloadResult(problems=[str(error)])
        except Exception as error:  # noqa: BLE001 - as above
            return self._unexpected(error)
        self.settings = settings
        return ReloadResult(changed=[*{*changed, *renewed}], needs_restart=restart, warnings=loaded.warnings)

    def _unexpected(self, error: Exception) -> ReloadResult:
        self.log.error("the settings could not be taken in", exc_info=error)
        return ReloadResult(problems=["an unexpected error; see the log"])
