"""Takes changed settings in while the gateway runs: all of what can change, or nothing."""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from structlog.typing import FilteringBoundLogger

from lcp_gateway.app.ledgers import LedgerError
from lcp_gateway.app.notify import Notifier
from lcp_gateway.app.reloadable import changes
from lcp_gateway.config import ConfigError, Loaded, Settings
from lcp_gateway.http.tls import BadCertificate
from lcp_gateway.telemetry.logs import tell


class Reload:
    """Reads the settings anew whenever ``wanted`` is set, one time after the other.

    ``read`` gives them as they are now. ``renew`` takes settings in, and gives the names of those whose files have
    changed, or fails with everything as it was.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        wanted: asyncio.Event,
        read: Callable[[], Loaded],
        renew: Callable[[Settings], Awaitable[Collection[str]]],
        notifier: Notifier,
        log: FilteringBoundLogger,
    ) -> None:
        self._settings = settings
        self._read = read
        self._renew = renew
        self._notifier = notifier
        self._log = log
        self._wanted = wanted

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._settings

    async def run(self) -> None:
        """Read them whenever that is asked for, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._notifier.reloading()
            try:
                await self._reload()
            finally:
                self._notifier.ready()

    async def _reload(self) -> None:
        try:
            # Files may lie on a slow disk: streams go on meanwhile.
            loaded = await asyncio.to_thread(self._read)
            changed, restart = changes(self._settings, loaded.settings)
            settings = loaded.keeping(self._settings, restart)
            renewed = await self._renew(settings)
        except ConfigError as error:
            self._refuse(error.problems)
        except (LedgerError, BadCertificate) as error:
            self._refuse([str(error)])
        except Exception as error:  # noqa: BLE001 - a gateway that serves must not end for its settings
            self._log.error("the settings could not be taken in", exc_info=error)
            self._refuse(["an unexpected error; see the log"])
        else:
            self._settings = settings
            for warning in loaded.warnings:
                self._log.warning(warning)
            # Names alone: a value may be a secret, and is nobody's business here.
            names = sorted({*changed, *renewed})
            tell(
                self._log,
                "configuration reloaded",
                changed=names,
                needs_restart=sorted(restart),
            )

    def _refuse(self, problems: list[str]) -> None:
        self._log.error("configuration not reloaded", problems=problems)
