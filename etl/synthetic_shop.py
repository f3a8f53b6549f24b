"""A small synthetic shop whose titles and brands carry what drives the next purchase, as atomic files."""

from pathlib import Path

import gin
import numpy as np

from seqrec_jax.files import write_text

ACTIVITIES = {
    "coffee": ["grinder", "kettle", "filter", "mug", "scale", "beans", "frother", "tamper"],
    "hiking": ["boots", "backpack", "poles", "tent", "stove", "headlamp", "map", "flask"],
    "painting": ["easel", "brush", "canvas", "palette", "acrylics", "varnish", "apron", "sketchbook"],
    "cycling": ["helmet", "pump", "saddle", "lock", "gloves", "chain", "lamp", "jersey"],
    "baking": ["mixer", "whisk", "tray", "sieve", "rolling pin", "piping bag", "scraper", "oven mitt"],
    "gardening": ["spade", "seeds", "trowel", "pots", "hose", "shears", "compost", "trellis"],
    "fishing": ["rod", "reel", "line", "lures", "net", "waders", "tackle box", "float"],
    "yoga": ["mat", "block", "strap", "bolster", "towel", "cushion", "wheel", "blanket"],
    "photography": ["tripod", "lens", "strap", "flash", "bag", "filter", "battery", "memory card"],
    "music": ["guitar", "capo", "strings", "tuner", "stand", "picks", "amplifier", "cable"],
    "swimming": ["goggles", "cap", "fins", "towel", "earplugs", "kickboard", "swimsuit", "snorkel"],
    "running": ["shoes", "socks", "watch", "belt", "shorts", "visor", "gel", "insoles"],
}
ADJECTIVES = ["classic", "compact", "deluxe", "light", "sturdy", "premium", "basic", "vintage", "pro", "mini"]
COLORS = ["black", "red", "blue", "green", "white", "grey", "yellow", "orange"]
SYLLABLES = ["al", "bor", "cen", "dru", "el", "fin", "gar", "hol", "ix", "jun", "kel", "lum", "mar", "nor", "ost"]


@gin.configurable
def make_shop(
    folder: str | Path, n_users: int = 3000, n_items: int = 2000, brands_per_activity: int = 5, seed: int = 7
) -> None:
    """Writes `shop.inter` and `shop.item`.

    A user takes up an activity and a brand and buys what comes next in the activity's order (kettle after grinder),
    mostly of that brand, among variants by popularity; now and then the activity changes, the brand does, or the user
    buys whatever sells. None of this is in the item ids, all of it in the titles and brands.

    Args:
        folder: is made.
        n_users: with 5 to 20 interactions each.
        n_items: of the catalog.
        brands_per_activity: brands that sell for one activity.
        seed: of everything.
    """
    rng = np.random.default_rng(seed)
    activities = list(ACTIVITIES)
    names = rng.permutation([a + b for a in SYLLABLES for b in SYLLABLES if a != b])
    brands = names[: len(activities) * brands_per_activity].reshape(len(activities), brands_per_activity)
    activity, brand = rng.integers(len(activities), size=n_items), rng.integers(brands_per_activity, size=n_items)
    kind = rng.integers(8, size=n_items)
    popularity = rng.zipf(1.8, size=n_items).clip(max=200).astype(float)
    ids = rng.permutation(np.arange(100_000, 100_000 + n_items))
    items = [
        f"{ids[i]}\t{rng.choice(ADJECTIVES).capitalize()} {activities[a]} {ACTIVITIES[activities[a]][kind[i]]}, "
        f"{rng.choice(COLORS)}\t{brands[a, brand[i]].capitalize()}"
        for i, a in enumerate(activity)
    ]

    def buy(wanted: np.ndarray) -> int:
        candidates = np.flatnonzero(wanted)
        weights = popularity[candidates] if len(candidates) else popularity
        return int(rng.choice(candidates if len(candidates) else n_items, p=weights / weights.sum()))

    interactions = []
    for user in range(n_users):
        now_activity, now_brand, now_kind = (
            rng.integers(len(activities)),
            rng.integers(brands_per_activity),
            rng.integers(8),
        )
        clock = 1_600_000_000 + int(rng.integers(10**7))
        for _ in range(rng.integers(5, 21)):
            wanted = (activity == now_activity) & (kind == now_kind)
            item = buy(wanted & (brand == now_brand) if rng.random() < 0.8 else wanted)
            if rng.random() < 0.1:
                item = buy(np.zeros(n_items, bool))
            interactions.append(f"u{user}\t{ids[item]}\t{clock}")
            clock += int(rng.integers(3_600, 10**6))
            now_kind = (now_kind + 1) % 8
            if rng.random() < 0.1:
                now_activity, now_brand = rng.integers(len(activities)), rng.integers(brands_per_activity)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "shop.item", "\n".join(["item_id:token\ttitle:token_seq\tbrand:token_seq", *items]) + "\n")
    write_text(
        folder / "shop.inter", "\n".join(["user_id:token\titem_id:token\ttimestamp:float", *interactions]) + "\n"
    )
