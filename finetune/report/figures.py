"""How numbers are written: one spelling for the page, the plots and REPORT.md, so that all three agree to the digit."""

from collections.abc import Callable, Mapping, Sequence

MINUS = "−"  # as wide as a plus sign, so that columns of differences line up
MISSING = "–"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def score(value: float | None) -> str:
    """0.326; a score from 0 to 1 needs three decimals to tell rows of a few hundred apart."""
    return MISSING if value is None else f"{value:.3f}".replace("-", MINUS)


def signed(value: float | None) -> str:
    """+0.101 or −0.020."""
    return MISSING if value is None else f"{value:+.3f}".replace("-", MINUS)


def interval(bounds: Sequence[float] | None) -> str:
    """[+0.051, +0.150]; the comma of an interval is followed by a space that does not break."""
    return MISSING if bounds is None else f"[{signed(bounds[0])},\u00a0{signed(bounds[1])}]"


def percent(value: float | None, digits: int = 1) -> str:
    """0.987 as 98.7 %."""
    return MISSING if value is None else f"{100 * value:.{digits}f}\u00a0%".replace("-", MINUS)


def change(value: float | None) -> str:
    """A fraction as +3.7 %."""
    return MISSING if value is None else f"{100 * value:+.1f}\u00a0%".replace("-", MINUS)


def count(value: int | None) -> str:
    """12,480."""
    return MISSING if value is None else f"{value:,}"


def seconds(value: float | None) -> str:
    """8.4 below a minute, whole seconds above."""
    if value is None:
        return MISSING
    return f"{value:.1f}" if value < 60 else f"{value:,.0f}"


def small(value: float | None) -> str:
    """Numbers that may be tiny, in three digits: 0.0123, 3.21 × 10⁻⁶, 0."""
    if value is None:
        return MISSING
    digits, _, power = f"{value:.3g}".partition("e")
    if power:
        digits += "\u00a0×\u00a010" + str(int(power)).translate(_RAISED)
    return digits.replace("-", MINUS)


def perplexity(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"


def brief(value: float | None) -> str:
    """Seconds from fractions of a second up: 0.043 s, 1.24 s."""
    return MISSING if value is None else f"{value:.3g}\u00a0s"


def p(value: float | None) -> str:
    """A p-value in three decimals; a smaller one is only said to be smaller."""
    return MISSING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def plain(value: object) -> str:
    """What a server or machine is called: a text, or a mapping's values in a row, numbers with their names."""
    if not isinstance(value, Mapping):
        return str(value)
    told = {name: one for name, one in value.items() if one is not None}
    return ", ".join(one if isinstance(one, str) else f"{name} {one}" for name, one in told.items())


def money(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.2f}"


def _whole(value: float | None) -> str:
    return count(None if value is None else int(value))


_GATES = {
    "gain_above": signed, "perplexity_rise_max": change, "parity_kl_mean_max": small, "consistency_min": percent,
    "context_loss_max": percent, "latency_p95_max": brief, "leaks_max": _whole,
}  # fmt: skip


def gate(name: str, value: float | None) -> str:
    """A gate's value or limit in the spelling that its quantity has elsewhere in the report."""
    spell: Callable[[float | None], str] = _GATES.get(name, small)
    return "0" if value == 0 else spell(value)


def parity(name: str, value: float | str | list[object]) -> str:
    """A number of parity.json: divergences may be tiny, agreement is a share, of lists the length counts."""
    if isinstance(value, list):
        return count(len(value))
    if isinstance(value, str):
        return value
    if "kl_" in name:
        return small(value)
    return percent(value, 2) if name == "top1" else count(int(value))
