"""Tables whose cells are shaded: how much a merged model uses its experts, and what each knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_Rows = Sequence[Mapping[str, Any]]


def expert_maps(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The maps of a result of `evaluate` or `merge` that measured experts: the share of each expert
    in each domain, and the bits per byte of each domain under each expert alone, if known."""
    rows = _expert_rows(result)
    if not rows:
        return []
    domains = list(dict.fromkeys(str(row["domain"]) for row in rows))
    experts = list(dict.fromkeys(str(row["expert"]) for row in rows))
    found = {(str(row["domain"]), str(row["expert"])): row for row in rows}
    maps = [_shares(found, domains, experts)]
    if all("bits_per_byte_alone" in row for row in rows):
        routed = {str(row["domain"]): row for row in result.get("routing") or []}
        maps.append(_alone(found, domains, experts, routed))
    return maps


def _expert_rows(result: Mapping[str, Any]) -> _Rows:
    """The rows on experts and domains; `experts` of a merge are only names."""
    for key in ("experts", "shares"):
        rows = result.get(key) or []
        if all(isinstance(row, Mapping) for row in rows) and rows:
            return list(rows)
    return []


def _shares(
    found: Mapping[tuple[str, str], Mapping[str, Any]],
    domains: Sequence[str],
    experts: Sequence[str],
) -> dict[str, Any]:
    rows = [
        [
            {
                "text": f"{found[domain, expert]['share']:.1%}",
                "shade": found[domain, expert]["share"],
            }
            for expert in experts
        ]
        for domain in domains
    ]
    top = [max(experts, key=lambda expert: found[domain, expert]["share"]) for domain in domains]
    sentence = "; ".join(
        f"{d} uses the expert of {e} most" for d, e in zip(domains, top, strict=True)
    )
    return {
        "title": "Which experts read which domain",
        "caption": "Mean routing weight of each expert (across) at the tokens of each domain "
        "(down), over all layers.",
        "text": f"{sentence}.",
        "columns": experts,
        "domains": domains,
        "rows": rows,
        "kind": "hit",
        "ends": ("0%", "100%"),
        "extra": None,
    }


def _alone(
    found: Mapping[tuple[str, str], Mapping[str, Any]],
    domains: Sequence[str],
    experts: Sequence[str],
    routed: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Bits per byte of each domain under each forced expert, shaded by how far they are above the
    best expert of the domain."""
    key = "bits_per_byte_alone"
    best = {d: min(found[d, e][key] for e in experts) for d in domains}
    largest = max(found[d, e][key] - best[d] for d in domains for e in experts) or 1.0
    rows = [
        [
            {
                "text": f"{found[d, e][key]:.3f}",
                "shade": (found[d, e][key] - best[d]) / largest,
                "best": found[d, e][key] == best[d],
            }
            for e in experts
        ]
        for d in domains
    ]
    sentences = [
        f"{d} is best under the expert of {next(e for e in experts if found[d, e][key] == best[d])}"
        for d in domains
    ]
    extra = None
    if all(domain in routed for domain in domains):
        extra = [f"{routed[d]['bits_per_byte']:.3f} ({routed[d]['regret']:+.3f})" for d in domains]
    return {
        "title": "What each expert alone makes of each domain",
        "caption": "Bits per byte of each domain (down) when every token is forced to one expert "
        "(across); lower is better, the best of each domain is bold. Shade: bits per byte above "
        "the best expert of the domain.",
        "text": f"{'; '.join(sentences)}.",
        "columns": experts,
        "domains": domains,
        "rows": rows,
        "kind": "miss",
        "ends": ("0", f"{largest:.3f} bits per byte"),
        "extra": extra,
    }
