"""What the settings say that customers are charged."""

from lcp_gateway.config import Settings
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.tariff import PPM_PER_PERCENT, Markup, Tariff


def tariff(settings: Settings) -> Tariff:
    """Give the mark-up of every model."""
    default = _markup(settings.markup_percent, settings.markup_msat)
    by_model = {
        name: _markup(
            settings.markup_percent if card.markup_percent is None else card.markup_percent,
            settings.markup_msat if card.markup_msat is None else card.markup_msat,
        )
        for name, card in settings.models.items()
        if card.markup_percent is not None or card.markup_msat is not None
    }
    return Tariff(default, by_model)


def _markup(percent: float, fixed_msat: int) -> Markup:
    return Markup(round(percent * PPM_PER_PERCENT), Msat(fixed_msat))
