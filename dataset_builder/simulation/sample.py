"""`SampleModel`: random compositions of natural samples with known labels.

A sample is a mixture of components (`minerals`) around the centre of an assemblage (`assemblages`): the logarithm of
every component's mass, and of every trace element's amount, is normal, shared causes (`Assemblage.factors`) correlate
them, and the mixture is closed to 100 %. This is the logistic-normal distribution of J. Aitchison, "The Statistical
Analysis of Compositional Data" (1986). All of it comes from standard normal numbers, the latents, so that a history of
smoothly varying latents (`cores`) is a history of compositions.

Names of the axes: B samples, N latents, C components, 92 elements.
"""

from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from .assemblages import ELEMENT, GLASS, MARINE_SEDIMENT, ORE, PLANT, ROCK, SOIL, Assemblage
from .atomic_data import ELEMENTS, mass_fractions
from .minerals import (
    CALCIUM_CARBONATE,
    CRUST,
    PORE_FLUIDS,
    element_vector,
    formula_vector,
    organic_carbon,
    trace_vector,
)
from .targets import LABEL_ELEMENTS, OXIDES, weight_percent_labels

_LABEL_COLUMNS = np.array([ELEMENTS.index(element) for element in LABEL_ELEMENTS])
# Bounds of ln(mass) in the flat prior: of components, relative to each other, and of elements, to all components.
_LN_FLAT_SOLIDS = np.log([1e-4, 1.0])
_LN_FLAT_ELEMENTS = np.log([1e-6, 0.03])


@dataclass(frozen=True, eq=False)
class Composition:
    """Compositions of B samples.

    Args:
        mass_fractions (`np.ndarray` of shape `(B, 92)`): of what the beam sees, wet where it is wet; rows add up to 1.
        labels (`dict[str, np.ndarray]`): wt% of the dried sample by name in `targets.SAMPLE_TARGETS`, each of shape
            `(B,)`; NaN where the target has no meaning. Drying leaves the salt of the pore fluid behind.
        kinds (`np.ndarray` of `str`, shape `(B,)`): assemblage of each sample, `"random"` for the flat prior.
    """

    mass_fractions: np.ndarray
    labels: dict[str, np.ndarray]
    kinds: np.ndarray

    def __len__(self):
        return len(self.mass_fractions)

    def __getitem__(self, rows) -> "Composition":
        labels = {name: values[rows] for name, values in self.labels.items()}
        return Composition(self.mass_fractions[rows], labels, self.kinds[rows])


@dataclass(frozen=True, eq=False)
class SampleModel:
    """A family of samples.

    Args:
        name (`str`): key in `SAMPLE_MODELS`.
        assemblages (`tuple[Assemblage, ...]`): kinds of samples, drawn by their shares; the first is the reference.
        without (`tuple[str, ...]`): labels that have no meaning for these samples.
        layered (`bool`): the samples come as cores, in which composition varies smoothly with depth.
        flat_share (`float`): share of samples (of cores, where layered) that follow no assemblage: every component and
            every labelled element has a log-uniform amount, independent of the others. A network that learns from
            a tenth of them cannot rely on nature's correlations (Ti from K, Rb from clay) and has to read the lines;
            the price are labels far from nature's (TOC of some 10 % in marine sediment).
    """

    name: str
    assemblages: tuple[Assemblage, ...]
    without: tuple[str, ...] = ()
    layered: bool = False
    flat_share: float = 0.0

    def __post_init__(self):
        if not 0 <= self.flat_share <= 1:
            raise ValueError(f"flat_share is a share and must lie in [0, 1]; got {self.flat_share}.")

    @cached_property
    def components(self) -> tuple[str, ...]:
        """All components that occur in an assemblage, the axis C."""
        return tuple(dict.fromkeys(component for assemblage in self.assemblages for component in assemblage.solids))

    @property
    def num_latents(self) -> int:
        """Standard normal numbers behind a sample: factors, components, elements and fluid."""
        return self._num_factors + len(self.components) + len(ELEMENTS) + 1

    def latent_columns(self, names) -> np.ndarray:
        """Positions of components (by name), elements (by symbol) and `"fluid"` among the latents."""
        axis = (*self.components, *ELEMENTS, "fluid")
        unknown = [name for name in names if name not in axis]
        if unknown:
            raise ValueError(
                f"a factor must name components of the sample model, elements or 'fluid'; {self.name} has no "
                f"{unknown[0]!r}."
            )
        return np.array([self._num_factors + axis.index(name) for name in names], dtype=int)

    def with_flat_share(self, flat_share: float) -> "SampleModel":
        """The same model with another share of the flat prior."""
        return replace(self, flat_share=flat_share)

    def draw_kinds(self, num_samples: int, rng: np.random.Generator) -> np.ndarray:
        """Number of the assemblage of each sample, by the assemblages' shares, shape `(num_samples,)`."""
        shares = np.array([assemblage.share for assemblage in self.assemblages])
        return rng.choice(len(shares), num_samples, p=shares / shares.sum())

    def draw(self, num_samples: int, rng: np.random.Generator) -> Composition:
        """Independent random samples."""
        kind = self.draw_kinds(num_samples, rng)
        flat = rng.random(num_samples) < self.flat_share
        return self.compose(kind, flat, rng.standard_normal((num_samples, self.num_latents)))

    def reference(self) -> np.ndarray:
        """Mass fractions at the centre of the first assemblage, shape `(92,)`."""
        centre = self.compose(np.zeros(1, dtype=int), np.zeros(1, dtype=bool), np.zeros((1, self.num_latents)))
        return centre.mass_fractions[0]

    def compose(self, kind, flat, latents, ln_shift=0.0) -> Composition:
        """Compositions from latents.

        Args:
            kind (`np.ndarray` of `int`, shape `(B,)`): number of each sample's assemblage.
            flat (`np.ndarray` of `bool`, shape `(B,)`): samples that follow the flat prior instead.
            latents (`np.ndarray` of shape `(B, N)`): standard normal numbers.
            ln_shift (`np.ndarray` of shape `(B, C)`): added to the logarithms of the components' masses (events).
        """
        num_factors, num_components = self._num_factors, len(self.components)
        factors, own = latents[:, :num_factors], latents[:, num_factors:]
        ln_change = own * self._log_sd[kind]  # (B, C + 93): components, elements, fluid
        for number in np.unique(kind):
            rows = kind == number
            ln_change[rows] += factors[rows] @ self._loadings[number]
        ln_solids, ln_traces, logit = np.split(ln_change, [num_components, num_components + len(ELEMENTS)], axis=1)

        ln_solids = self._ln_solids[kind] + ln_solids + ln_shift
        if flat.any():
            ln_solids[flat] = _log_uniform(own[flat, :num_components], *_LN_FLAT_SOLIDS)
        solids = np.exp(ln_solids - ln_solids.max(axis=1, keepdims=True))
        solids /= solids.sum(axis=1, keepdims=True)  # (B, C)
        traces = (solids @ self._component_traces + self._bulk_traces[kind]) * np.exp(ln_traces)
        if flat.any():
            random = _log_uniform(own[np.ix_(flat, num_components + _LABEL_COLUMNS)], *_LN_FLAT_ELEMENTS)
            traces[flat] = 0
            traces[np.ix_(flat, _LABEL_COLUMNS)] = np.exp(random)
        dry = solids @ self._component_elements + traces
        total = dry.sum(axis=1, keepdims=True)
        fluid = 1 / (1 + np.exp(-(self._fluid_logit[kind] + logit[:, 0])))  # (B,)
        wet = (1 - fluid)[:, None] * (dry / total) + fluid[:, None] * self._fluid_elements[kind]

        dried = 1 - fluid * self._fluid_water[kind]  # mass that is left of the wet sample
        solids_share = (1 - fluid) / (dried * total[:, 0])
        labels = weight_percent_labels(
            wet / dried[:, None],
            solids_share * (solids @ self._carbonate),
            solids_share * (solids @ self._organic_carbon),
        )
        labels.update({name: np.full(len(wet), np.nan) for name in self.without})
        return Composition(wet, labels, np.where(flat, "random", self._kinds[kind]))

    @cached_property
    def _num_factors(self):
        return max(len(assemblage.factors) for assemblage in self.assemblages)

    @cached_property
    def _kinds(self):
        return np.array([assemblage.name for assemblage in self.assemblages])

    @cached_property
    def _component_elements(self):
        return np.stack([formula_vector(component) for component in self.components])  # (C, 92)

    @cached_property
    def _component_traces(self):
        return np.stack([trace_vector(component) for component in self.components])  # (C, 92)

    @cached_property
    def _carbonate(self):
        return np.array([CALCIUM_CARBONATE.get(component, 0.0) for component in self.components])

    @cached_property
    def _organic_carbon(self):
        return np.array([organic_carbon(component) for component in self.components])

    @cached_property
    def _bulk_traces(self):
        crust = element_vector(CRUST)
        vectors = []
        for assemblage in self.assemblages:
            traces = element_vector(assemblage.traces)
            vectors.append(1e-6 * np.where(traces > 0, traces, assemblage.crust * crust))
        return np.stack(vectors)  # (assemblages, 92)

    @cached_property
    def _ln_solids(self):
        with np.errstate(divide="ignore"):  # ln 0: the component is not in the assemblage
            return np.log(
                [[assemblage.solids.get(c, (0.0, 0.0))[0] for c in self.components] for assemblage in self.assemblages]
            )

    @cached_property
    def _log_sd(self):
        rows = []
        for assemblage in self.assemblages:
            components = [assemblage.solids.get(component, (0.0, 0.0))[1] for component in self.components]
            rows.append([*components, *[assemblage.trace_log_sd] * len(ELEMENTS), assemblage.fluid_logit_sd])
        return np.array(rows)  # (assemblages, C + 93)

    @cached_property
    def _loadings(self):
        loadings = np.zeros((len(self.assemblages), self._num_factors, len(self.components) + len(ELEMENTS) + 1))
        for number, assemblage in enumerate(self.assemblages):
            for row, factor in enumerate(assemblage.factors):
                columns = self.latent_columns(factor) - self._num_factors
                loadings[number, row, columns] = list(factor.values())
        return loadings

    @cached_property
    def _fluid_logit(self):
        with np.errstate(divide="ignore"):  # ln 0: dry
            fluid = np.array([assemblage.fluid_share for assemblage in self.assemblages])
            return np.log(fluid / (1 - fluid))

    @cached_property
    def _fluid_water(self):
        return np.array([1 - sum(PORE_FLUIDS[assemblage.fluid].values()) for assemblage in self.assemblages])

    @cached_property
    def _fluid_elements(self):
        dissolved = np.stack([element_vector(PORE_FLUIDS[assemblage.fluid]) for assemblage in self.assemblages])
        return dissolved + self._fluid_water[:, None] * element_vector(mass_fractions("H2O"))  # (assemblages, 92)


def _log_uniform(latents, low, high):
    """Log-uniform amounts' logarithms from standard normal numbers.

    The logistic function of 1.702 z is the normal distribution function of z within 0.01 (G. Camilli, J. Educ.
    Behav. Stat. 19, 293 (1994)), so it makes uniform numbers of them.
    """
    return low + (high - low) / (1 + np.exp(-1.702 * latents))


_OXIDES_AND_CARBONATE = ("CaCO3", *OXIDES)
SAMPLE_MODELS = {
    model.name: model
    for model in (
        SampleModel("marine_sediment", MARINE_SEDIMENT, layered=True),
        SampleModel("rock", ROCK),
        SampleModel("soil", SOIL),
        SampleModel("ore", ORE),
        SampleModel("plant", PLANT, without=_OXIDES_AND_CARBONATE),
        SampleModel("element", ELEMENT, without=("TOC", *_OXIDES_AND_CARBONATE)),
        SampleModel("glass", GLASS, without=("CaCO3", "TOC")),
    )
}
"""Every sample model by its name."""


def sample_model(name: str, flat_share: float | None = None) -> SampleModel:
    """The sample model of this name, with another `flat_share` if one is given.

    Raises:
        ValueError: there is no such model, or the share does not lie between 0 and 1.
    """
    if name not in SAMPLE_MODELS:
        raise ValueError(f"there is no sample model {name!r}; choose one of {', '.join(sorted(SAMPLE_MODELS))}.")
    model = SAMPLE_MODELS[name]
    return model if flat_share is None else model.with_flat_share(flat_share)


@cache
def reference_mass_fractions() -> np.ndarray:
    """Composition of a wet hemipelagic mud, the anchor of instruments' absolute counts, shape `(92,)`."""
    return sample_model("marine_sediment").reference()
