"""The world of the synthetic clicks: rows, and their true probabilities.

Every value is a pure function of (seed, row number), so any range of rows can be made
alone, always the same. The click's logit is a sum of planted effects of what a model
sees:

    z = b + Σ_f u_f[x_f] + tags + Σ_n g_n(x_n)            fields and numeric fields
      + Σ_(f,g) Σ_r p_f[x_f]_r · p_g[x_g]_r               second-order crosses
      + Σ_(f,g,h) Σ_r p_f[x_f]_r · p_g[x_g]_r · p_h[x_h]_r    third-order crosses
      + ⟨q[item], Σ_k ρ_k · q[event_k]⟩                   affinity to the last events

where b and u_item drift slowly in time, and the weights ρ_k, which add up to 1, fall
by `RECENCY` from each event to the one before it. A conversion, once clicked, has a
logit of the same form.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from rankax.config.synthetic import NUM_CATEGORIES, SyntheticConfig
from rankax.data.counter_random import CounterRandom, Zipf

DAY = 86_400
START_SECONDS = 1_704_067_200  # Monday 2024-01-01, UTC
SPAN_SECONDS = 28 * DAY  # of all splits together, however many rows they have

NUM_TAGS, MAX_TAGS = 60, 4
MAX_HISTORY = 10
NUM_TASTES = 3  # categories that a user comes back to
EVENTS_PER_INTEREST = 10  # then the current interest is drawn anew from the tastes
FOCUS = 0.75  # share of a user's events that follow the current interest
RETARGETED = 0.3  # share of the candidates that do
RECENCY = 0.7


# ---------------------------------------------------------------- what is planted


@dataclasses.dataclass(frozen=True, slots=True)
class Field:
    """A categorical field.

    Attributes:
        owner: what decides the id: "row" (a draw), "user" and "item" (an attribute),
            "time", or "" (made by a rule of its own).
        num_ids: 0 = told by the configuration.
        exponent: of Zipf's law.
        click: standard deviation of its effect on the click's logit.
        conversion: and on the conversion's.
    """

    owner: str
    num_ids: int
    exponent: float
    click: float
    conversion: float


FIELDS = {
    "user_id": Field("row", 0, 0.8, 0.20, 0.10),
    "item_id": Field("", 0, 1.0, 0.30, 0.20),
    "category": Field("", NUM_CATEGORIES, 0.8, 0.40, 0.30),
    "brand": Field("item", 150, 0.9, 0.15, 0.20),
    "format": Field("item", 6, 0.5, 0.15, 0.05),
    "country": Field("user", 30, 1.0, 0.20, 0.15),
    "age": Field("user", 8, 0.3, 0.15, 0.10),
    "segment": Field("user", 16, 0.5, 0.20, 0.15),
    "domain": Field("row", 3, 0.6, 0.30, 0.20),
    "device": Field("row", 5, 0.7, 0.25, 0.15),
    "slot": Field("row", 10, 0.5, 0.60, 0.05),
    "page": Field("row", 50, 0.8, 0.35, 0.05),
    "topic": Field("row", 60, 0.9, 0.20, 0.05),
    "site": Field("row", 20_000, 1.3, 0.10, 0.05),
    "connection": Field("row", 4, 0.5, 0.10, 0.05),
    "hour": Field("time", 24, 0.0, 0.25, 0.05),
    "weekday": Field("time", 7, 0.0, 0.05, 0.05),
}


@dataclasses.dataclass(frozen=True, slots=True)
class Cross:
    """An interaction of two or three fields, of this rank and standard deviation."""

    fields: tuple[str, ...]
    rank: int
    scale: float


CLICK_CROSSES = (
    Cross(("segment", "category"), 2, 0.35),
    Cross(("topic", "category"), 2, 0.20),
    Cross(("slot", "device"), 2, 0.25),
    Cross(("hour", "age"), 2, 0.20),
    Cross(("domain", "device", "format"), 2, 0.25),
    Cross(("slot", "age", "connection"), 2, 0.25),
    Cross(("segment", "device", "connection"), 2, 0.25),
)
CONVERSION_CROSSES = (
    Cross(("segment", "brand"), 2, 0.25),
    Cross(("device", "format"), 2, 0.25),
    Cross(("domain", "age", "device"), 2, 0.25),
)
# Latents are centred, so a pair carries no main effect. Those of triples keep this mean
# beside variance 1: a triple then shows in its pairs too, as it would in life, where a
# pure one is a parity that no model finds.
TRIPLE_MEAN = 0.5

CLICK_BIAS, CONVERSION_BIAS = -1.9, -1.4
TAG_EFFECT = 0.15
NUMERIC_EFFECT = 0.25
SEQUENCE_EFFECT, SEQUENCE_RANK = 0.38, 2
OWN_LATENT = 0.3  # an item's own latent, beside its category's of variance 1


# ---------------------------------------------------------------- the world


class World:
    """What does not depend on the row, and the making of rows from it."""

    def __init__(self, config: SyntheticConfig):
        """Draws attributes, latents and tables.

        Raises:
            ConfigError: a setting out of range.
        """
        config.check()
        self.config = config
        self.random = CounterRandom(config.seed)
        self.total_rows = (
            config.num_train_rows + config.num_valid_rows + config.num_test_rows
        )
        self._users = np.arange(config.num_users)
        self._items = np.arange(config.num_items)
        self._draw_attributes()
        self._draw_users()
        self._draw_items()
        self.click = self._effects("click", CLICK_CROSSES)
        self.conversion = self._effects("conversion", CONVERSION_CROSSES)

    def _draw_attributes(self) -> None:
        """Makes the laws of ids, and the ids that belong to users and items."""
        config = self.config
        category = Zipf(NUM_CATEGORIES, FIELDS["category"].exponent)
        num_ranks = config.num_items // NUM_CATEGORIES
        rank = Zipf(num_ranks, FIELDS["item_id"].exponent)
        self.laws = {"category": category, "rank": rank}
        # An item is a category and a rank of popularity within it.
        by_item = np.outer(rank.probability, category.probability).ravel()
        self.probability = {"item_id": by_item, "category": category.probability}
        self.attributes = {"category": (self._items % NUM_CATEGORIES).astype(np.int32)}
        for name, field in FIELDS.items():
            if field.owner == "time":
                self.probability[name] = np.full(field.num_ids, 1 / field.num_ids)
            elif field.owner:
                law = Zipf(field.num_ids or config.num_users, field.exponent)
                self.laws[name] = law
                self.probability[name] = law.probability
            if field.owner in ("user", "item"):
                owners = self._users if field.owner == "user" else self._items
                ids = self.laws[name].draw(self.random.bits(name, owners))
                weights = self.probability[f"{field.owner}_id"]
                self.attributes[name] = ids
                self.probability[name] = np.bincount(
                    ids, weights=weights, minlength=field.num_ids
                )
        # Popularity moves from one order of the ranks to another.
        moved = self.random.bits("later_rank", np.arange(num_ranks))
        self._later_rank = np.argsort(moved).astype(np.int32)

    def _draw_users(self) -> None:
        """Decides when users' events begin and how fast they come, and tastes."""
        random, users = self.random, self._users
        # Three users in ten begin late: 27 % have no past at first, 9 % at the end.
        share = random.uniform("user/begin", users)
        begin = np.interp(share, (0, 0.7, 1), (-20, -5, 40))
        self._user_begin = START_SECONDS + begin * DAY
        self._user_gap = (0.3 + 2.2 * random.uniform("user/gap", users)) * DAY
        taste = random.bits("user/taste", _grid(users, NUM_TASTES))
        self._user_tastes = self.laws["category"].draw(taste)

    def _draw_items(self) -> None:
        """Decides tags, price, affinity latents, and how appeal will change."""
        random, items = self.random, self._items
        probability = self.probability["item_id"]
        tags = random.bits("item/tag", _grid(items, MAX_TAGS))
        self._item_tags = Zipf(NUM_TAGS, 0.7).draw(tags)
        num_tags = random.bits("item/num_tags", items) % np.uint64(MAX_TAGS + 1)
        self._item_num_tags = num_tags.astype(np.int64)
        effect = random.normal("item/tag_effect", np.arange(NUM_TAGS))
        shown = _last(MAX_TAGS, self._item_num_tags)
        total = (effect[self._item_tags] * shown).sum(axis=1)
        mean = total / np.maximum(self._item_num_tags, 1)
        self._item_tag_effect = _standardized(mean, probability)
        self._item_price = random.uniform("item/price", items)
        self._item_later = _standardized(
            random.normal("item/later", items), probability
        )
        latent = random.normal(
            "category/latent", _grid(np.arange(NUM_CATEGORIES), SEQUENCE_RANK)
        )
        own = random.normal("item/latent", _grid(items, SEQUENCE_RANK))
        latent = latent[self.attributes["category"]] + OWN_LATENT * own
        latent = _standardized(latent, probability) / SEQUENCE_RANK**0.25
        self._item_latent = latent.astype(np.float32)

    def _effects(self, task: str, crosses: Sequence[Cross]) -> "Effects":
        """Draws the tables of one task, scaled as the configuration says."""
        config, random = self.config, self.random
        main = {}
        for name, field in FIELDS.items():
            ids = np.arange(self.probability[name].size)
            effect = random.normal(f"{task}/{name}", ids)
            effect = _standardized(effect, self.probability[name])
            scale = config.main_scale * getattr(field, task)
            main[name] = (scale * effect).astype(np.float32)
        latents = []
        for cross in crosses:
            order = len(cross.fields)
            mean = TRIPLE_MEAN if order == 3 else 0.0
            variance = (1 + mean**2) ** order - mean ** (2 * order)  # of a product
            knob = config.triple_scale if order == 3 else config.cross_scale
            scale = (knob * cross.scale / np.sqrt(cross.rank * variance)) ** (1 / order)
            for name in cross.fields:
                ids = np.arange(self.probability[name].size)
                stream = f"{task}/{'*'.join(cross.fields)}/{name}"
                latent = random.normal(stream, _grid(ids, cross.rank))
                latent = _standardized(latent, self.probability[name]) + mean
                latents.append((scale * latent).astype(np.float32))
        return Effects(main=main, crosses=tuple(crosses), latents=tuple(latents))

    def times(self, first: int, count: int) -> np.ndarray:
        """Returns the times [count] int64 of rows, in seconds; they rise."""
        index = np.arange(first, first + count, dtype=np.int64)
        return START_SECONDS + index * SPAN_SECONDS // self.total_rows

    def rows(self, first: int, count: int) -> dict[str, np.ndarray]:
        """Makes rows `first` .. `first + count - 1` of the splits laid end to end.

        Returns:
            Arrays [count] by column; the lists `tags`, `history_item` and
            `history_category` are [count, width], of which the last `num_tags` or
            `num_events` of each row count.
        """
        config, random = self.config, self.random
        index = np.arange(first, first + count, dtype=np.int64)
        progress = index / self.total_rows
        time = self.times(first, count)
        columns = {
            name: self.laws[name].draw(random.bits(name, index))
            for name, field in FIELDS.items()
            if field.owner == "row"
        }
        user = columns["user_id"]
        columns["time"] = time
        columns["hour"] = (time // 3600 % 24).astype(np.int32)
        columns["weekday"] = (time // DAY % 7).astype(np.int32)

        # The user's past: event e happens within [e, e + 1) gaps after the beginning.
        elapsed = (time - self._user_begin[user]) / self._user_gap[user]
        whole = np.floor(elapsed).astype(np.int64)
        num_events = whole + (self._moment(user, whole) <= elapsed)
        num_events = np.maximum(num_events, 0)
        idle = elapsed - self._moment(user, num_events - 1)
        idle = np.where(num_events > 0, idle, 2.0)
        event = num_events[:, None] + np.arange(-MAX_HISTORY, 0)
        columns["num_events"] = np.minimum(num_events, MAX_HISTORY)
        columns["history_item"] = self._event_items(user[:, None], event)
        columns["history_category"] = columns["history_item"] % NUM_CATEGORIES

        # The candidate: a popular one, or one of the current interest.
        rank = self.laws["rank"].draw(random.bits("rank", index))
        moved = random.uniform("moved", index) < 0.3 * config.drift_scale * progress
        rank = np.where(moved, self._later_rank[rank], rank)
        category = np.where(
            random.uniform("retargeted", index) < RETARGETED,
            self._interest(user, num_events),
            self.laws["category"].draw(random.bits("category", index)),
        )
        item = columns["item_id"] = category + NUM_CATEGORIES * rank
        for name, ids in self.attributes.items():
            columns[name] = ids[user if FIELDS[name].owner == "user" else item]
        columns["tags"] = self._item_tags[item]
        columns["num_tags"] = self._item_num_tags[item]

        # Numeric fields: mean near 0, standard deviation near 1.
        price = self._item_price[item] + random.uniform("price", index) - 1
        four = random.bits("quality", index).view(np.uint16).reshape(count, 4)
        quality = four.sum(axis=1, dtype=np.int64) * 2.0**-16 - 2
        columns["price"] = (2.4 * price).astype(np.float32)
        columns["quality"] = (1.7 * quality).astype(np.float32)
        columns["idle"] = (2 * idle - 1.4).astype(np.float32)

        click = self._click_logit(columns, progress)
        conversion = self._conversion_logit(columns, click)
        # Rounded first, so that what is stored is what decides the label.
        p_click, p_conversion = (
            _sigmoid(z).astype(np.float32) for z in (click, conversion)
        )
        clicked = random.uniform("click", index) < p_click
        converted = random.uniform("conversion", index) < p_conversion
        columns["ctr"] = clicked.astype(np.int8)
        columns["ctr_probability"] = p_click
        columns["ctcvr"] = (clicked & converted).astype(np.int8)
        columns["ctcvr_probability"] = p_click * p_conversion
        return columns

    def _moment(self, user: np.ndarray, event: np.ndarray) -> np.ndarray:
        """Returns when an event happens, in gaps since the user's beginning."""
        return event + self.random.uniform("event/moment", _pair(user, event))

    def _interest(self, user: np.ndarray, event: np.ndarray) -> np.ndarray:
        """Returns the category that a user is after at an event."""
        phase = _pair(user, event // EVENTS_PER_INTEREST)
        bits = self.random.bits("event/interest", phase)
        return self._user_tastes[user, bits % np.uint64(NUM_TASTES)]

    def _event_items(self, user: np.ndarray, event: np.ndarray) -> np.ndarray:
        """Returns the items of events [n, L]; event numbers below 0 get some, too."""
        pair = _pair(user, event)
        bits = self.random.bits("event/category", pair)
        focused = (bits & np.uint64(0xFFFF)) < np.uint64(FOCUS * 2**16)
        category = np.where(
            focused, self._interest(user, event), self.laws["category"].draw(bits)
        )
        rank = self.laws["rank"].draw(self.random.bits("event/rank", pair))
        return category + NUM_CATEGORIES * rank

    def _click_logit(
        self, columns: dict[str, np.ndarray], progress: np.ndarray
    ) -> np.ndarray:
        """Returns z [n] float64; `progress` [n] is the share of the time range."""
        config, item = self.config, columns["item_id"]
        effects = self.click
        # The appeal of an item turns towards another draw by at most 0.25 radian.
        angle = 0.25 * config.drift_scale * progress
        later = FIELDS["item_id"].click * self._item_later[item]
        x, y, z = (
            columns[name].astype(np.float64) for name in ("price", "quality", "idle")
        )
        numeric = 1.5 * np.exp(-(x**2)) + 1.2 * np.sin(1.5 * y) + np.tanh(2 * z)
        return (
            CLICK_BIAS
            + 0.2 * config.drift_scale * (progress - 0.5)
            + effects(columns)
            + (np.cos(angle) - 1) * effects.main["item_id"][item]
            + np.sin(angle) * config.main_scale * later
            + config.main_scale * TAG_EFFECT * self._item_tag_effect[item]
            + config.main_scale * NUMERIC_EFFECT * numeric
            + config.sequence_scale * SEQUENCE_EFFECT * self.affinity(columns)
        )

    def _conversion_logit(
        self, columns: dict[str, np.ndarray], click: np.ndarray
    ) -> np.ndarray:
        """Returns the logit of a conversion given a click of logit `click` [n]."""
        price = 0.3 * self.config.main_scale * np.tanh(columns["price"])
        related = 0.25 * (click - CLICK_BIAS)
        return CONVERSION_BIAS + self.conversion(columns) + related - price

    def affinity(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Returns ⟨q[item], Σ_k ρ_k·q[event_k]⟩ [n], 0 for users without events."""
        num_events, history = columns["num_events"], columns["history_item"]
        recent = np.zeros((num_events.size, SEQUENCE_RANK))
        # Event by event: the order of a sum must not depend on the number of rows.
        for place in range(MAX_HISTORY):
            age = MAX_HISTORY - 1 - place
            weight = RECENCY**age * (num_events > age)
            recent += weight[:, None] * self._item_latent[history[:, place]]
        affinity = np.zeros(num_events.size)
        for mine, theirs in zip(
            self._item_latent[columns["item_id"]].T, recent.T, strict=True
        ):
            affinity += mine * theirs
        total = np.cumsum(RECENCY ** np.arange(MAX_HISTORY))
        return affinity / total[np.maximum(num_events, 1) - 1]


@dataclasses.dataclass(frozen=True, slots=True)
class Effects:
    """Planted effects of one task.

    Attributes:
        main: field -> float32 [V].
        crosses: what the latents are of.
        latents: float32 [V, r] of each field of each cross, in order.
    """

    main: dict[str, np.ndarray]
    crosses: tuple[Cross, ...]
    latents: tuple[np.ndarray, ...]

    def __call__(self, columns: dict[str, np.ndarray]) -> np.ndarray:
        """Returns the sum of all effects, float64 [n]."""
        logit = np.zeros(columns["time"].size)
        for name, table in self.main.items():
            logit += table[columns[name]]
        for values in self.by_cross(columns).values():
            logit += values
        return logit

    def by_cross(self, columns: dict[str, np.ndarray]) -> dict[Cross, np.ndarray]:
        """Returns the effect of each cross, float32 [n]."""
        latents = iter(self.latents)
        effects = {}
        for cross in self.crosses:
            product = np.float32(1)
            for name in cross.fields:
                product = product * next(latents)[columns[name]]
            effects[cross] = product.sum(axis=1)
        return effects


def _standardized(values: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Returns values [V] or [V, r] with mean 0 and variance 1 over random ids."""
    values = values - probability @ values
    return values / np.sqrt(probability @ values**2)


def _grid(ids: np.ndarray, width: int) -> np.ndarray:
    """Returns counters [V, width], all different."""
    return ids[:, None] * width + np.arange(width)


def _pair(user: np.ndarray, event: np.ndarray) -> np.ndarray:
    """Returns one counter per user and event."""
    return (user.astype(np.int64) << 32) + event


def _last(width: int, lengths: np.ndarray) -> np.ndarray:
    """Returns a mask [n, width] of the last `lengths` places of each row."""
    return np.arange(width) >= width - lengths[:, None]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))
