"""`Recipe`: what a corpus is made of, simulated or measured, in which shares, and how it is split.

A recipe is a YAML file, one of those in `recipes/` or the user's own:

    name: sediments
    license: cc-by-4.0
    seed: 0
    validation_fraction: 0.1
    test_fraction: 0.1
    parts:
      - name: simulated
        weight: 0.7
        simulation: {samples: marine_sediment, instruments: avaatech_10kv, num_spectra: 20000, num_cores: 50}
      - name: measured
        weight: 0.3
        files: {paths: ["cores/*.spe"], fill: {gain_kev: 0.02, offset_kev: 0, anode: Rh}, core_pattern: '^(.+)-\\d+$'}
"""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

from .augmentation import augmentation_from_config
from .sources import FILL_FIELDS, FileSource

SPLITS = ("train", "validation", "test")
PACKAGED_RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class SimulationPart:
    """Spectra that physics predicts; see `simulation.SimulatedSource`.

    Args:
        name (`str`): names the part in the corpus's summary.
        num_spectra, num_cores (`int`): size, spread evenly over the cores (or sample series).
        samples, instruments (`str`, `list[str]` or `dict[str, int]`): one name; several, of which each core draws one;
            or how often each is drawn for every time that another one is.
        flat_share (`float`): share of samples without nature's correlations, see `simulation.SampleModel`.
        seed (`int`): another seed gives other spectra.
        weight (`float`, *optional*): share of the corpus, see `Recipe`.
    """

    name: str
    num_spectra: int
    num_cores: int
    samples: str | list | dict = "marine_sediment"
    instruments: str | list | dict = "avaatech_10kv"
    flat_share: float = 0.0
    seed: int = 0
    weight: float | None = None

    def __post_init__(self):
        for name in ("num_spectra", "num_cores", "seed"):
            if not _is_whole(getattr(self, name)):
                raise ValueError(f"{name} of a simulation must be a whole number; it is {getattr(self, name)!r}.")
        for name in ("samples", "instruments"):
            value = getattr(self, name)
            if isinstance(value, dict) and not all(_is_whole(times) and times > 0 for times in value.values()):
                raise ValueError(
                    f"{name} of a simulation must be names, or names with positive whole numbers; found {value!r}."
                )
        if not _is_number(self.flat_share) or not 0 <= self.flat_share <= 1:
            raise ValueError(f"flat_share of a simulation must be a number from 0 to 1; it is {self.flat_share!r}.")
        if not 1 <= self.num_cores <= self.num_spectra:
            raise ValueError(
                f"num_cores must be at least 1 and at most num_spectra; got {self.num_cores} cores for "
                f"{self.num_spectra} spectra."
            )

    def source(self, data_root=None):
        """The `SimulatedSource`; `data_root` plays no part."""
        from .simulation import SimulatedSource

        return SimulatedSource(
            samples=_repeated(self.samples),
            instruments=_repeated(self.instruments),
            num_spectra=self.num_spectra,
            num_cores=self.num_cores,
            seed=self.seed,
            flat_share=self.flat_share,
        )


@dataclass(frozen=True)
class FilesPart:
    """Spectra in files.

    Args:
        name (`str`): names the part in the corpus's summary.
        paths (`str` or `list[str]`): files, folders and patterns such as `maps/*.npz`, relative to the data root.
        column_mapping (`dict`, *optional*): arguments of `ColumnMapping` for wide tables.
        fill (`dict`): value by field (`gain_kev`, `offset_kev`, `tube_kv`, `anode`, ...) where a file leaves it open.
        overwrite (`bool`): `fill` also replaces what a file states.
        core_pattern (`str`, *optional*): regular expression whose first group, found in the sample's name, is the core
            of spectra whose file names none; `r"^(.+)-\\d+$"` makes `BL-1` the core of `BL-1-122`.
        targets (`list[str]`, *optional*): the targets to keep; all if not given, none if empty.
        weight (`float`, *optional*): share of the corpus, see `Recipe`.
    """

    name: str
    paths: str | list
    column_mapping: dict | None = None
    fill: dict = field(default_factory=dict)
    overwrite: bool = False
    core_pattern: str | None = None
    targets: list | None = None
    weight: float | None = None

    def __post_init__(self):
        from .readers import ColumnMapping

        object.__setattr__(self, "paths", [str(p) for p in _as_list(self.paths)])
        if not self.paths:
            raise ValueError(f"The part {self.name!r} must name files or folders; paths is empty.")
        for name, kind in (("targets", list), ("fill", dict), ("overwrite", bool)):
            if not isinstance(getattr(self, name), (kind, type(None))):
                wanted = {list: "a list of names", dict: "values by field", bool: "true or false"}[kind]
                raise ValueError(f"{name} of files must be {wanted}; found {getattr(self, name)!r}.")
        unknown = sorted(set(self.fill) - set(FILL_FIELDS))
        if unknown:
            raise ValueError(f"Only the fields {', '.join(FILL_FIELDS)} can be filled; found {unknown[0]!r}.")
        for name, kind in FILL_FIELDS.items():
            value = self.fill.get(name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
                wanted = "text" if kind is str else "a number"
                raise ValueError(f"{name} must be {wanted} to be filled in; it is {value!r}.")
        if not self.fill.get("gain_kev", 1) > 0:
            raise ValueError(f"gain_kev must be positive; it is {self.fill['gain_kev']}: give keV per channel.")
        if self.column_mapping is not None:
            ColumnMapping.from_dict(self.column_mapping)
        if self.core_pattern is not None:
            _check_core_pattern(self.core_pattern)

    def source(self, data_root=None) -> FileSource:
        """The files, found below `data_root` (the working directory if not given)."""
        return FileSource(self.paths, data_root, self.column_mapping, self.fill, self.overwrite)


@dataclass(frozen=True)
class Recipe:
    """What a corpus is made of, and how it is split. See the module for the YAML form.

    Weights are shares. In a built corpus a part that holds more than its share is thinned out at random (with
    `seed`), and one that holds less is used whole: no spectrum is there twice. Where `num_spectra` does not say how
    many spectra there shall be, there are as many as all shares can be met with. In a stream a weight is the
    probability to draw from the part. Without weights everything is used.

    Args:
        name (`str`): name of the corpus.
        parts (`tuple` of `SimulationPart` and `FilesPart`): what it is made of; all have a weight or none has.
        seed (`int`): of the split and of thinning out.
        num_spectra (`int`, *optional*): spectra in all; needs weights.
        validation_fraction, test_fraction (`float`): shares of the spectra; the rest is for training.
        augmentation (`list[dict]`): for training, see `augmentation.augmentation_from_config`; corpora hold native
            counts.
        license (`str`, *optional*): Hub identifier for the card.
        description (`str`): one sentence for the card.

    Raises:
        ValueError: a value is out of range, or two parts have one name.
    """

    name: str
    parts: tuple
    seed: int = 0
    num_spectra: int | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    augmentation: list = field(default_factory=list)
    license: str | None = None
    description: str = ""

    def __post_init__(self):
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ValueError("A recipe must have parts; it has none.")
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError(f"The parts of a recipe must have different names; they are {', '.join(names)}.")
        weighted = [part.weight is not None for part in self.parts]
        if any(weighted) and not all(weighted):
            raise ValueError(
                f"Either all parts of a recipe have a weight or none; {names[weighted.index(False)]!r} has none."
            )
        for part in self.parts:
            if part.weight is not None and not (_is_number(part.weight) and 0 < part.weight < math.inf):
                raise ValueError(f"A weight must be a positive number; that of {part.name!r} is {part.weight!r}.")
        if self.num_spectra is not None and (not all(weighted) or self.num_spectra < 1):
            raise ValueError(
                "num_spectra of a recipe must be positive and needs a weight for every part; it is "
                f"{self.num_spectra}."
            )
        for name in ("validation_fraction", "test_fraction"):
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be a share from 0 to below 1; it is {getattr(self, name)!r}.")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                "validation_fraction and test_fraction must leave something to train on; they add up to "
                f"{self.validation_fraction + self.test_fraction:g}."
            )
        augmentation_from_config(self.augmentation)

    @property
    def weights(self) -> list[float] | None:
        """Share of every part, adding up to 1; `None` where the recipe gives no weights."""
        if self.parts[0].weight is None:
            return None
        total = sum(part.weight for part in self.parts)
        return [part.weight / total for part in self.parts]

    @property
    def fractions(self) -> dict[str, float]:
        """Share of the spectra by split."""
        training_fraction = 1 - self.validation_fraction - self.test_fraction
        return dict(zip(SPLITS, (training_fraction, self.validation_fraction, self.test_fraction), strict=True))

    @property
    def is_endless(self) -> bool:
        """Whether a stream of it can go on with fresh spectra for ever: every part is simulated."""
        return all(isinstance(part, SimulationPart) for part in self.parts)

    def part_sources(self, data_root=None) -> list:
        """Where the spectra of each part come from: a `SimulatedSource` or a `FileSource`, in the order of `parts`.

        Both have `num_units` and `unit_names()`: cores or sample series here, files there, each of which can be read
        independently of the others, by `simulate(unit)` and `spectra(unit)`.

        Args:
            data_root (path, *optional*): folder that the paths of files start from.
        """
        return [part.source(data_root) for part in self.parts]

    def to_dict(self) -> dict:
        """The form that `from_dict` reads, without what has its default."""
        values = _without_defaults(self)
        values["parts"] = []
        for part in self.parts:
            inner = _without_defaults(part)
            outer = {key: inner.pop(key) for key in ("name", "weight") if key in inner}
            key = "simulation" if isinstance(part, SimulationPart) else "files"
            values["parts"].append({**outer, key: inner})
        return values

    @classmethod
    def from_dict(cls, values: dict) -> "Recipe":
        """From parsed YAML.

        Raises:
            ValueError: a key is unknown or missing, or a value is not allowed.
        """
        values = _checked_keys(cls, values, "A recipe")
        if not isinstance(values["parts"], list):
            raise ValueError(f"parts of a recipe must be a list; it is {values['parts']!r}.")
        values["parts"] = tuple(_part_from_dict(part) for part in values["parts"])
        return cls(**values)

    @classmethod
    def from_yaml(cls, path_or_name) -> "Recipe":
        """From a YAML file, or the name of a packaged recipe (`packaged_recipes()` lists them).

        Raises:
            ValueError: there is no such file or recipe, or it is not a valid one.
        """
        import yaml

        path = Path(path_or_name)
        packaged = PACKAGED_RECIPES / f"{path_or_name}.yaml"
        if not path.is_file():
            if str(path_or_name) not in packaged_recipes():
                raise ValueError(
                    f"There is no recipe {path_or_name}; give a YAML file or one of {', '.join(packaged_recipes())}."
                )
            path = packaged
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"The recipe {path} must be YAML: {' '.join(str(error).split())}.") from None
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"The recipe {path.name} cannot be used: {error}") from None


def packaged_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in PACKAGED_RECIPES.glob("*.yaml"))


def _part_from_dict(values):
    kinds = {"simulation": SimulationPart, "files": FilesPart}
    if not isinstance(values, dict) or len(set(values) & set(kinds)) != 1:
        raise ValueError(f"A part of a recipe must have either simulation or files; it is {values!r}.")
    kind = next(key for key in kinds if key in values)
    unknown = sorted(set(values) - {"name", "weight", kind})
    if unknown:
        raise ValueError(f"A part of a recipe has the keys name, weight and {kind}; found {unknown[0]!r}.")
    inner = values[kind]
    if not isinstance(inner, dict) or {"name", "weight"} & set(inner):
        raise ValueError(f"{kind} of a part must hold its options; name and weight stand beside it.")
    outer = {key: values[key] for key in ("name", "weight") if key in values}
    return kinds[kind](**_checked_keys(kinds[kind], {"name": kind, **outer, **inner}, f"{kind} of a part"))


def _checked_keys(cls, values, what):
    if not isinstance(values, dict):
        raise ValueError(f"{what} must have named values; it is {values!r}.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = [key for key in values if key not in fields]
    if unknown:
        raise ValueError(f"{what} has no key {unknown[0]!r}; the keys are {', '.join(fields)}.")
    needed = [
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in needed if name not in values]
    if missing:
        raise ValueError(f"{what} needs the key {missing[0]!r}; add it.")
    return dict(values)


def _without_defaults(instance):
    values = {}
    for spec in dataclasses.fields(instance):
        default = spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()
        if getattr(instance, spec.name) != default:
            values[spec.name] = getattr(instance, spec.name)
    return values


def _check_core_pattern(pattern):
    try:
        groups = re.compile(pattern).groups
    except (re.error, TypeError) as error:
        raise ValueError(f"core_pattern must be a regular expression; {pattern!r} is not ({error}).") from None
    if groups < 1:
        raise ValueError(f"core_pattern must have a group that gives the core; {pattern!r} has none: add parentheses.")


def _as_list(value):
    return [value] if isinstance(value, (str, Path)) else list(value)


def _repeated(names):
    """Names with how often each is drawn, as the list that `SimulatedSource` draws from."""
    return [name for name, times in names.items() for _ in range(times)] if isinstance(names, dict) else names


def _is_whole(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
