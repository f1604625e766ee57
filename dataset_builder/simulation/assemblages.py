"""Assemblages: which components a kind of sample is made of, how much they vary, and what makes them vary together.

Centres and spreads are rounded from the tables of average rocks and their ranges in K. K. Turekian and K. H. Wedepohl,
Geol. Soc. Am. Bull. 72, 175 (1961), R. W. Le Maitre, J. Petrology 17, 589 (1976), H. Blatt, G. Middleton and R.
Murray, "Origin of Sedimentary Rocks", A. Kabata-Pendias, "Trace Elements in Soils and Plants", and W. L. Pohl,
"Economic Geology"; they describe what occurs, not how often.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, eq=False)
class Assemblage:
    """One kind of sample.

    Args:
        name (`str`): kind of sample.
        solids (`dict[str, tuple[float, float]]`): mass at the centre (any unit, closed to 100 %) and standard
            deviation of its natural logarithm, by component.
        share (`float`): how often the kind occurs, relative to the other assemblages of its sample model.
        crust (`float`): trace elements in the whole sample, as a multiple of `minerals.CRUST`.
        traces (`dict[str, float]`): trace elements in the whole sample in microgram per gram, instead of the crust's.
            The traces of the components (`minerals.TRACES`) come on top.
        trace_log_sd (`float`): standard deviation of the logarithm of every trace element's amount.
        factors (`tuple[dict[str, float], ...]`): shared causes. Each is one standard normal number, and the dictionary
            says what it adds to the logarithm of a component's mass, of an element's trace amount, or (`"fluid"`) to
            the logit of the fluid's share.
        fluid (`str`): what fills the pores, a key of `minerals.PORE_FLUIDS`.
        fluid_share, fluid_logit_sd (`float`): mass fraction of it at the centre, standard deviation of its logit.
    """

    name: str
    solids: dict[str, tuple[float, float]]
    share: float = 1.0
    crust: float = 0.0
    traces: dict[str, float] = field(default_factory=dict)
    trace_log_sd: float = 0.5
    factors: tuple[dict[str, float], ...] = ()
    fluid: str = "water"
    fluid_share: float = 0.0
    fluid_logit_sd: float = 0.0


_ANOXIA = {
    "kerogen": 0.7, "pyrite": 0.6, "Mo": 1.3, "U": 0.9, "V": 0.8, "Ni": 0.7, "Cu": 0.6, "Zn": 0.8, "As": 0.5,
    "Sb": 1.1, "Se": 1.0, "Cd": 1.0, "Ag": 0.8, "Cr": 0.4,
}  # fmt: skip
_ZIRCON = {"zircon": 0.5, "rutile": 0.2}

MARINE_SEDIMENT = (
    Assemblage(
        "marine mud",
        {
            "calcite": (5.0, 2.1), "opal": (20.0, 0.9), "quartz": (16.0, 0.4), "illite": (13.0, 0.4),
            "smectite": (10.0, 0.5), "chlorite": (6.0, 0.5), "kaolinite": (3.0, 0.6), "plagioclase": (15.0, 0.4),
            "potassium_feldspar": (3.0, 0.5), "pyroxene": (1.0, 0.8), "goethite": (0.9, 0.8), "ilmenite": (0.25, 0.7),
            "rutile": (0.24, 0.5), "manganese_oxide": (0.08, 1.3), "apatite": (0.32, 0.4), "pyrite": (0.3, 0.8),
            "barite": (0.04, 0.8), "zircon": (0.012, 0.4), "dolomite": (0.1, 1.0), "rhyolitic_glass": (0.3, 0.9),
            "basaltic_glass": (0.3, 0.9), "organic_matter": (0.43, 0.45),
        },
        trace_log_sd=0.3,
        factors=(
            {"opal": 0.4, "organic_matter": 0.3, "barite": 0.5, "calcite": 0.4, "fluid": 0.25},  # productivity
            {"quartz": 0.6, "illite": 0.7, "smectite": 0.7, "chlorite": 0.8, "kaolinite": 0.7, "plagioclase": 0.6,
             "potassium_feldspar": 0.7, "goethite": 0.8, "ilmenite": 0.8, "rutile": 0.8, "zircon": 0.7,
             "pyroxene": 0.6, "fluid": -0.2},  # supply from land
            {"pyrite": 0.6, "organic_matter": 0.25, "Mo": 0.9, "U": 0.7, "V": 0.3, "manganese_oxide": -0.6,
             "goethite": -0.3},  # anoxia
            {"smectite": 0.3, "pyroxene": 0.5, "basaltic_glass": 0.8, "ilmenite": 0.3, "illite": -0.3, "Cr": 0.3,
             "Ni": 0.3, "potassium_feldspar": -0.4, "quartz": -0.2, "Th": -0.2},  # mafic provenance
            {"quartz": 0.3, "plagioclase": 0.2, "potassium_feldspar": 0.2, "zircon": 0.6, "rutile": 0.2,
             "illite": -0.3, "smectite": -0.3, "kaolinite": -0.3, "chlorite": -0.3, "goethite": -0.2,
             "organic_matter": -0.2, "fluid": -0.15},  # grain size
        ),
        fluid="sea_water",
        fluid_share=0.6,
        fluid_logit_sd=0.4,
    ),
)  # fmt: skip

_SHALE_ACCESSORIES = {
    "goethite": (0.5, 1.2), "rutile": (0.4, 0.4), "ilmenite": (0.15, 0.8), "zircon": (0.018, 0.5),
    "apatite": (0.3, 1.1), "barite": (0.06, 1.8), "manganese_oxide": (0.01, 1.2), "gypsum": (0.2, 1.5),
}  # fmt: skip
_CARBONATE_ACCESSORIES = {name: (0.15 * mass, log_sd) for name, (mass, log_sd) in _SHALE_ACCESSORIES.items()}
_DIFFERENTIATION = {
    "Cr": -0.8, "Ni": -0.8, "Co": -0.4, "V": -0.4, "Rb": 0.5, "Ba": 0.3, "Th": 0.5, "U": 0.5, "Nb": 0.3, "Zr": 0.3,
    "La": 0.3, "Ce": 0.3, "Nd": 0.2, "Y": 0.2, "Pb": 0.3,
}  # fmt: skip
_GRANITE_TRACES = {
    "Sc": 7, "V": 40, "Cr": 15, "Mn": 400, "Co": 5, "Ni": 8, "Cu": 10, "Zn": 45, "Ga": 10, "Ge": 1.3, "As": 1.5,
    "Br": 1, "Rb": 60, "Sr": 60, "Y": 30, "Zr": 60, "Nb": 18, "Mo": 1.2, "Sn": 3, "Sb": 0.2, "Cs": 3, "Ba": 300,
    "La": 45, "Ce": 85, "Nd": 33, "Hf": 2, "W": 1.7, "Pb": 10, "Th": 15, "U": 3.5, "S": 200, "Cl": 200, "F": 800,
}  # fmt: skip
_BASALT_TRACES = {
    "Sc": 20, "V": 100, "Cr": 60, "Mn": 600, "Co": 25, "Ni": 50, "Cu": 80, "Zn": 85, "Ga": 10, "Ge": 1.4, "As": 1.5,
    "Br": 2, "Rb": 12, "Sr": 150, "Y": 25, "Zr": 120, "Nb": 14, "Mo": 1.3, "Sn": 1.5, "Sb": 0.2, "Cs": 0.6, "Ba": 180,
    "La": 16, "Ce": 37, "Nd": 21, "Hf": 2.8, "W": 0.6, "Pb": 4, "Th": 2.5, "U": 0.7, "S": 400, "Cl": 100, "F": 400,
}  # fmt: skip

ROCK = (
    Assemblage(
        "mudrock",
        {
            "illite": (25, 0.6), "smectite": (9, 0.8), "chlorite": (5, 1.1), "kaolinite": (5, 1.3),
            "quartz": (27, 0.6), "plagioclase": (4, 0.8), "potassium_feldspar": (2, 0.9), "calcite": (5, 2.0),
            "dolomite": (1.5, 1.8), "siderite": (0.3, 1.3), "pyrite": (1.5, 1.2), "kerogen": (2.5, 1.0),
            **_SHALE_ACCESSORIES,
        },
        share=3,
        trace_log_sd=0.4,
        factors=(_ANOXIA, _ZIRCON, {"Ni": 0.3, "Cr": 0.3, "Co": 0.3, "chlorite": 0.3, "Th": -0.2}),
    ),
    Assemblage(
        "siliceous mudrock",
        {
            "quartz": (55, 0.5), "opal": (4, 1.2), "illite": (10, 0.7), "smectite": (3, 0.8), "chlorite": (1.5, 0.9),
            "kaolinite": (1, 1), "plagioclase": (2, 0.8), "calcite": (1.2, 2.0), "dolomite": (2.0, 2.2),
            "pyrite": (1.5, 0.9), "kerogen": (4, 0.9), **_SHALE_ACCESSORIES,
        },
        share=1.5,
        trace_log_sd=0.4,
        factors=(_ANOXIA, _ZIRCON, {"barite": 1.2}),
    ),
    Assemblage(
        "limestone",
        {
            "calcite": (80, 0.5), "aragonite": (0.5, 1.5), "dolomite": (2, 1.6), "quartz": (4, 1.1),
            "illite": (4, 1.0), "smectite": (1.5, 1.1), "kaolinite": (0.6, 1.1), "chlorite": (0.4, 1.1),
            "plagioclase": (0.4, 1), "pyrite": (0.3, 1.1), "kerogen": (0.6, 1.1), **_CARBONATE_ACCESSORIES,
        },
        share=2,
        crust=0.04,
        factors=(_ANOXIA, {"quartz": 0.5, "illite": 0.5, "smectite": 0.5, "kaolinite": 0.5, "rutile": 0.5,
                           "zircon": 0.5, "ilmenite": 0.5, "chlorite": 0.5}, {"Sr": 0.5}),
    ),
    Assemblage(
        "dolostone",
        {
            "dolomite": (80, 0.4), "calcite": (6, 1.2), "quartz": (5, 1.2), "illite": (3, 1.1),
            "smectite": (1.0, 1), "anhydrite": (0.3, 1.5), "pyrite": (0.3, 1.1), "kerogen": (0.6, 1.1),
            **_CARBONATE_ACCESSORIES,
        },
        crust=0.04,
        factors=(_ANOXIA,),
    ),
    Assemblage(
        "sandstone",
        {
            "quartz": (68, 0.3), "plagioclase": (6, 1.0), "potassium_feldspar": (6, 1.0), "muscovite": (1, 1),
            "illite": (5, 0.9), "kaolinite": (3, 1.0), "chlorite": (1.5, 1.0), "smectite": (1, 1),
            "calcite": (2, 1.7), "dolomite": (0.5, 1.6), "goethite": (0.8, 1.0), "rutile": (0.2, 0.6),
            "ilmenite": (0.2, 0.8), "zircon": (0.03, 0.7), "apatite": (0.1, 0.8), "pyrite": (0.1, 1.3),
            "barite": (0.02, 1.5), "kerogen": (0.1, 1.2), "manganese_oxide": (0.01, 1.2),
        },
        share=2,
        crust=0.05,
        factors=({"plagioclase": 0.5, "potassium_feldspar": 0.4, "chlorite": 0.4, "quartz": -0.2},
                 {"zircon": 0.7, "rutile": 0.6, "ilmenite": 0.6}),
    ),
    Assemblage(
        "quartzite",
        {"quartz": (98, 0.02), "muscovite": (0.08, 1.7), "kaolinite": (0.3, 1.3), "goethite": (0.3, 1.0),
         "rutile": (0.04, 0.9), "zircon": (0.004, 1.0), "potassium_feldspar": (0.1, 1.5)},
        crust=0.01,
        trace_log_sd=0.9,
    ),
    Assemblage(
        "evaporite",
        {"gypsum": (30, 1.5), "anhydrite": (25, 1.5), "halite": (10, 2.0), "dolomite": (5, 1.3), "calcite": (2, 1.3),
         "illite": (3, 1.2), "quartz": (2, 1.2), "sylvite": (0.3, 2.0), "celestine": (0.1, 1.5)},
        share=0.4,
        crust=0.03,
    ),
    Assemblage(
        "phosphorite",
        {"apatite": (60, 0.4), "fluorite": (4, 0.5), "calcite": (12, 1.2), "quartz": (10, 0.9), "illite": (4, 1.0),
         "dolomite": (2, 1.4), "kerogen": (1.5, 1.0), "pyrite": (0.5, 1.0), "goethite": (1, 1.0)},
        share=0.4,
        crust=0.3,
        trace_log_sd=0.7,
        factors=(_ANOXIA,),
    ),
    Assemblage(
        "coal",
        {"coal_macerals": (85, 0.25), "kaolinite": (4, 1.0), "illite": (4, 0.9), "quartz": (3, 0.9),
         "pyrite": (1, 1.1), "calcite": (0.8, 1.3), "siderite": (0.5, 1.3), "gypsum": (0.2, 1.2),
         "rutile": (0.08, 0.7), "apatite": (0.06, 1.0), "barite": (0.02, 1.0), "zircon": (0.003, 0.6)},
        share=0.7,
        crust=0.03,
        trace_log_sd=0.7,
        factors=({"kaolinite": 0.6, "illite": 0.6, "quartz": 0.6, "rutile": 0.6, "zircon": 0.6},),
        fluid_share=0.05,
        fluid_logit_sd=0.8,
    ),
    Assemblage(
        "granite",
        {"quartz": (28, 0.25), "potassium_feldspar": (26, 0.4), "albite": (29, 0.25), "anorthite": (7, 0.8),
         "biotite": (5, 0.7), "muscovite": (1.5, 1.2), "hornblende": (1, 1.3), "magnetite": (1, 0.7),
         "ilmenite": (0.3, 0.7), "titanite": (0.2, 0.9), "apatite": (0.25, 0.7), "zircon": (0.03, 0.5),
         "calcite": (0.05, 1.5), "pyrite": (0.02, 1.5)},
        share=1.5,
        traces=_GRANITE_TRACES,
        trace_log_sd=0.4,
        factors=({**_DIFFERENTIATION, "anorthite": -0.5, "biotite": -0.3, "hornblende": -0.6, "magnetite": -0.4,
                  "ilmenite": -0.4, "apatite": -0.4, "titanite": -0.4, "Sr": -0.7, "Ba": -0.3, "Cs": 0.5,
                  "Sn": 0.5},),
    ),
    Assemblage(
        "obsidian",
        {"silica": (75, 0.02), "alumina": (13, 0.08), "potash": (4.4, 0.15), "soda": (4.2, 0.15), "lime": (0.6, 0.6),
         "iron_oxide": (1.4, 0.4), "magnesia": (0.1, 0.9), "titanium_oxide": (0.11, 0.4)},
        share=2.5,
        traces={**_GRANITE_TRACES, "Rb": 145, "Y": 38, "Zr": 190, "Nb": 24, "Mn": 420, "Ba": 200, "Sr": 28, "Zn": 60,
                "Cr": 2, "Ni": 2, "V": 4, "Co": 0.4, "Sc": 2, "Cu": 2.5, "As": 4, "U": 7, "Th": 15, "Hf": 7, "Ga": 19,
                "La": 40, "Ce": 80, "Cl": 900, "S": 50, "Pb": 25, "Cs": 6, "P": 100},
        trace_log_sd=0.35,
        factors=(
            {"Zr": 0.8, "Nb": 0.8, "Y": 0.6, "Zn": 0.6, "Rb": 0.25, "Th": 0.35, "U": 0.3, "Hf": 0.8, "La": 0.5,
             "Ce": 0.5, "Nd": 0.5, "Ga": 0.2, "Sr": -1.4, "Ba": -1.4, "iron_oxide": 0.55, "alumina": -0.08,
             "lime": -0.5, "Mn": 0.4, "Sn": 0.4, "Mo": 0.4, "F": 0.5, "Cl": 0.4},  # peralkaline
            {"Rb": 0.5, "Cs": 0.7, "Th": 0.6, "U": 0.6, "Nb": 0.7, "potash": 0.1, "Sr": -0.5},
            {"Ba": 1.2, "Sr": 0.5},
            {"Cu": 0.7, "titanium_oxide": 0.4, "Ni": 0.5, "V": 0.5, "Co": 0.5, "Cr": 0.5},
            {"As": 0.7, "Sb": 0.7, "Co": 0.5},
        ),
    ),
    Assemblage(
        "peralkaline obsidian",
        {"silica": (73, 0.02), "alumina": (9.5, 0.12), "potash": (4.3, 0.1), "soda": (5.6, 0.15), "lime": (0.18, 0.5),
         "iron_oxide": (5, 0.45), "magnesia": (0.05, 0.9), "titanium_oxide": (0.2, 0.4)},
        traces={**_GRANITE_TRACES, "Rb": 230, "Y": 130, "Zr": 1300, "Nb": 160, "Mn": 900, "Ba": 10, "Sr": 2.5,
                "Zn": 250, "Cr": 1, "Ni": 1, "V": 1, "Co": 0.3, "Sc": 1, "Cu": 3, "As": 5, "U": 12, "Th": 33, "Hf": 30,
                "Ga": 25, "La": 120, "Ce": 240, "Nd": 100, "Cl": 2500, "S": 100, "Pb": 30, "Cs": 4, "Sn": 12, "P": 80},
        trace_log_sd=0.35,
        factors=(
            {"Zr": 0.6, "Nb": 0.8, "Y": 0.5, "Zn": 0.5, "Rb": 0.3, "Th": 0.6, "U": 0.5, "Hf": 0.6, "La": 0.3,
             "Ce": 0.3, "Nd": 0.3, "Sn": 0.3},
            {"Ba": 1.5, "Sr": 0.4},
            {"Sr": 0.7, "lime": 0.2},
        ),
    ),
    Assemblage(
        "andesite",
        {"quartz": (13, 0.5), "potassium_feldspar": (9, 0.5), "albite": (29, 0.2), "anorthite": (24, 0.3),
         "pyroxene": (6, 0.6), "orthopyroxene": (7, 0.5), "hornblende": (4, 1.0), "biotite": (1.5, 1.0),
         "magnetite": (4, 0.4), "ilmenite": (1.4, 0.4), "apatite": (0.5, 0.4), "chlorite": (0.5, 1.3)},
        share=1.5,
        traces={**_BASALT_TRACES, "Rb": 30, "Ba": 350, "Zr": 130, "V": 30, "Cr": 5, "Ni": 3, "Cu": 40, "Th": 6,
                "U": 1.8, "La": 22, "Ce": 48, "Pb": 9, "Y": 18, "Cs": 1.5},
        factors=(_DIFFERENTIATION,),
    ),
    Assemblage(
        "basalt",
        {"anorthite": (26, 0.3), "albite": (22, 0.4), "potassium_feldspar": (4, 0.8), "pyroxene": (20, 0.4),
         "orthopyroxene": (10, 0.8), "olivine": (7, 1.1), "nepheline": (0.5, 2.0), "quartz": (0.5, 1.8),
         "magnetite": (6, 0.4), "ilmenite": (3.5, 0.5), "apatite": (0.7, 0.6), "calcite": (0.2, 1.5),
         "chlorite": (1.0, 1.4), "zeolite": (0.2, 1.6)},
        share=2.5,
        traces=_BASALT_TRACES,
        factors=(
            {**_DIFFERENTIATION, "olivine": -0.6, "potassium_feldspar": 0.3, "quartz": 0.3, "Cu": -0.2, "Sr": 0.2},
            {"Rb": 0.5, "Ba": 0.5, "Sr": 0.4, "Nb": 0.8, "La": 0.6, "Ce": 0.6, "Nd": 0.4, "Th": 0.6, "U": 0.5,
             "Zr": 0.3, "ilmenite": 0.3, "apatite": 0.5, "nepheline": 0.8, "potassium_feldspar": 0.3},  # alkalinity
        ),
    ),
    Assemblage(
        "peridotite",
        {"olivine": (40, 0.8), "orthopyroxene": (18, 0.6), "pyroxene": (7, 0.9), "serpentine": (20, 1.6),
         "magnetite": (3, 0.7), "chromite": (0.8, 0.7), "talc": (1, 1.6), "magnesite": (0.5, 1.6),
         "anorthite": (2, 1.0), "calcite": (0.3, 1.5), "pyrrhotite": (0.1, 1.2)},
        share=0.7,
        crust=0.01,
    ),
    Assemblage(
        "syenite",
        {"potassium_feldspar": (38, 0.3), "albite": (34, 0.3), "nepheline": (8, 1.3), "anorthite": (3, 0.9),
         "aegirine": (4, 0.9), "biotite": (3, 0.8), "hornblende": (2, 1.0), "magnetite": (2, 0.6),
         "titanite": (0.8, 0.7), "apatite": (0.4, 0.7), "zircon": (0.05, 0.8)},
        share=0.5,
        traces={**_GRANITE_TRACES, "Zr": 250, "Nb": 60, "La": 80, "Ce": 150, "Ba": 400, "Sr": 150, "Zn": 90,
                "F": 1500},
        factors=({"zircon": 0.5, "Zr": 0.5, "Nb": 0.6, "La": 0.5, "Ce": 0.5, "Th": 0.6, "U": 0.5, "Y": 0.4},),
    ),
    Assemblage(
        "schist",
        {"quartz": (32, 0.5), "muscovite": (20, 0.7), "biotite": (12, 0.7), "plagioclase": (13, 0.7),
         "chlorite": (8, 1.0), "garnet": (3, 1.3), "potassium_feldspar": (4, 1.0), "epidote": (1.5, 1.3),
         "ilmenite": (0.7, 0.5), "rutile": (0.2, 0.6), "apatite": (0.3, 0.6), "zircon": (0.03, 0.5),
         "pyrite": (0.2, 1.3), "calcite": (0.3, 1.8), "tourmaline": (0.1, 1.4), "hornblende": (1, 1.6)},
        share=1,
        crust=0.4,
        traces={"F": 800, "Ti": 100, "P": 100},
    ),
)  # fmt: skip

_SOIL_MOISTURE = {"fluid": "water", "fluid_share": 0.03, "fluid_logit_sd": 1.2}
_LOAM = {
    "quartz": (45, 0.4), "illite": (12, 0.6), "smectite": (7, 0.9), "chlorite": (3, 0.9), "kaolinite": (5, 0.9),
    "plagioclase": (9, 0.6), "potassium_feldspar": (7, 0.5), "muscovite": (1.5, 0.9), "goethite": (2.5, 0.6),
    "hematite": (0.5, 1.0), "ilmenite": (0.4, 0.6), "rutile": (0.3, 0.5), "zircon": (0.035, 0.5),
    "apatite": (0.25, 0.6), "manganese_oxide": (0.06, 0.7), "calcite": (0.7, 1.7), "dolomite": (0.1, 1.6),
    "humus": (4, 0.8), "hornblende": (0.7, 1.1), "gypsum": (0.03, 1.3),
}  # fmt: skip
_HUMUS = {"humus": 0.6, "fluid": 0.6, "Pb": 0.3, "Br": 0.8, "S": 0.5}
_WEATHERING = {
    "plagioclase": -0.7, "potassium_feldspar": -0.5, "calcite": -0.7, "smectite": -0.4, "illite": -0.3,
    "kaolinite": 0.7, "goethite": 0.5, "hematite": 0.6, "ilmenite": 0.3, "zircon": 0.3, "rutile": 0.3, "apatite": -0.4,
}  # fmt: skip

SOIL = (
    Assemblage("loam", _LOAM, share=3, crust=0.25, factors=(_WEATHERING, _HUMUS, _ZIRCON), **_SOIL_MOISTURE),
    Assemblage(
        "ferruginous soil",
        {"kaolinite": (40, 0.5), "goethite": (14, 0.7), "hematite": (8, 0.9), "quartz": (20, 1.0),
         "gibbsite": (3, 1.4), "ilmenite": (0.8, 0.6), "rutile": (0.8, 0.5), "magnetite": (0.5, 1.2),
         "chromite": (0.1, 1.2), "illite": (3, 0.9), "zircon": (0.03, 0.5), "manganese_oxide": (0.05, 0.9),
         "humus": (1, 1.0), "calcite": (0.1, 1.5), "chlorite": (0.4, 1.2)},
        share=1.5,
        crust=0.2,
        traces={"Cu": 30, "Sc": 22, "Sr": 20, "S": 300},
        factors=({"Cr": 0.6, "Ni": 0.8, "Cu": 0.9, "Co": 0.6, "Sc": 0.5, "V": 0.3, "goethite": 0.4, "hematite": 0.4,
                  "Sr": -0.3, "Th": -0.1},),
        **_SOIL_MOISTURE,
    ),
    Assemblage(
        "calcareous soil",
        {**_LOAM, "calcite": (30, 0.8), "dolomite": (3, 1.4), "gypsum": (0.5, 1.7)},
        crust=0.2,
        factors=(_HUMUS,),
        **_SOIL_MOISTURE,
    ),
    Assemblage(
        "peat",
        {**_LOAM, "humus": (150, 0.9), "cellulose": (30, 1.0), "pyrite": (0.3, 1.3)},
        share=0.7,
        crust=0.1,
        factors=(_HUMUS,),
        fluid_share=0.3,
        fluid_logit_sd=1.2,
    ),
    Assemblage(
        "contaminated soil",
        _LOAM,
        crust=0.25,
        traces={"Pb": 300, "Zn": 400, "Cu": 150, "As": 40, "Cd": 3, "Sb": 10, "Sn": 15, "Hg": 1, "Cr": 120, "Ni": 60,
                "Ag": 1, "Mo": 4, "Se": 1, "Ba": 400, "Bi": 2, "W": 4},
        trace_log_sd=0.9,
        factors=({"Pb": 1.0, "Zn": 0.9, "Cd": 1.0, "Ag": 0.7, "Sb": 0.7, "Bi": 0.5},
                 {"Cu": 1.1, "As": 1.0, "Mo": 0.7, "Se": 0.6},
                 {"Cr": 1.0, "Ni": 1.0}, _HUMUS),
        **_SOIL_MOISTURE,
    ),
)  # fmt: skip

_SULPHIDES = {
    "pyrite": (4, 1.3), "chalcopyrite": (0.5, 1.5), "sphalerite": (0.5, 1.5), "galena": (0.3, 1.5),
    "pyrrhotite": (0.5, 1.7), "arsenopyrite": (0.2, 1.6),
}  # fmt: skip
_GANGUE = {
    "quartz": (30, 0.7), "illite": (8, 0.9), "chlorite": (6, 0.9), "plagioclase": (6, 1.0),
    "potassium_feldspar": (6, 1.0), "calcite": (3, 1.4), "rutile": (0.3, 0.8), "apatite": (0.2, 0.8),
}  # fmt: skip
_PRECIOUS = ({"gold": 1.5}, {"Ag": 1.0, "Bi": 1.0, "Sb": 0.7, "Se": 0.7})

ORE = (
    Assemblage(
        "iron ore",
        {"hematite": (45, 0.8), "goethite": (20, 1.2), "magnetite": (12, 1.6), "quartz": (10, 1.2),
         "kaolinite": (3, 1.0), "gibbsite": (1, 1.3), "apatite": (0.2, 1.1), "calcite": (0.3, 1.5),
         "manganese_oxide": (0.2, 1.4), "siderite": (0.3, 1.6), "ilmenite": (0.1, 1.3), "pyrite": (0.05, 1.5)},
        share=1.5,
        crust=0.05,
    ),
    Assemblage(
        "copper sulphide ore",
        {**_GANGUE, **_SULPHIDES, "chalcopyrite": (5, 1.2), "bornite": (0.7, 1.6), "chalcocite": (0.5, 1.7),
         "tetrahedrite": (0.05, 1.7), "molybdenite": (0.05, 1.5), "biotite": (3, 1.0), "gold": (1e-4, 0.5)},
        share=1.5,
        crust=0.3,
        factors=_PRECIOUS,
    ),
    Assemblage(
        "oxidised copper ore",
        {**_GANGUE, "malachite": (5, 1.2), "goethite": (6, 1.0), "chalcocite": (0.3, 1.6), "jarosite": (1, 1.4),
         "manganese_oxide": (0.2, 1.3), "kaolinite": (6, 1.0)},
        crust=0.3,
    ),
    Assemblage(
        "zinc-lead ore",
        {**_GANGUE, **_SULPHIDES, "sphalerite": (12, 1.0), "galena": (5, 1.2), "dolomite": (10, 1.5),
         "barite": (1, 1.8), "siderite": (1, 1.5), "fluorite": (0.5, 1.6), "tetrahedrite": (0.05, 1.5),
         "gold": (3e-5, 0.5)},
        share=1.5,
        crust=0.2,
        factors=_PRECIOUS,
    ),
    Assemblage(
        "oxidised zinc-lead ore",
        {**_GANGUE, "smithsonite": (10, 1.1), "cerussite": (5, 1.3), "goethite": (12, 1.0), "dolomite": (10, 1.4),
         "galena": (1, 1.5), "manganese_oxide": (0.5, 1.3)},
        share=0.5,
        crust=0.2,
        traces={"Cd": 200, "Ag": 40, "As": 200},
        trace_log_sd=0.9,
    ),
    Assemblage(
        "nickel sulphide ore",
        {"pyrrhotite": (25, 1.0), "pentlandite": (6, 1.0), "chalcopyrite": (4, 1.2), "magnetite": (5, 0.9),
         "olivine": (15, 1.2), "orthopyroxene": (15, 0.9), "serpentine": (8, 1.5), "anorthite": (8, 1.0),
         "hornblende": (4, 1.2), "chromite": (0.2, 1.3), "cobaltite": (0.02, 1.6)},
        crust=0.05,
    ),
    Assemblage(
        "nickel laterite",
        {"goethite": (35, 0.9), "nickel_serpentine": (8, 1.3), "serpentine": (20, 1.2), "talc": (3, 1.2),
         "quartz": (8, 1.2), "chromite": (2, 0.8), "manganese_oxide": (1, 1.0), "magnetite": (2, 1.0),
         "gibbsite": (2, 1.2), "smectite": (4, 1.2)},
        crust=0.03,
        traces={"Ni": 3000},
        fluid_share=0.05,
        fluid_logit_sd=1.0,
    ),
    Assemblage(
        "manganese ore",
        {"manganese_oxide": (35, 0.9), "braunite": (15, 1.5), "rhodochrosite": (4, 1.8), "rhodonite": (3, 1.6),
         "goethite": (7, 1.0), "quartz": (10, 1.0), "kaolinite": (4, 1.0), "calcite": (3, 1.4), "barite": (0.5, 1.5),
         "apatite": (0.3, 1.0)},
        crust=0.1,
    ),
    Assemblage(
        "chromite ore",
        {"chromite": (55, 0.6), "serpentine": (18, 0.9), "olivine": (10, 1.2), "orthopyroxene": (4, 1.2),
         "chlorite": (4, 1.1), "magnesite": (1, 1.5), "talc": (1, 1.5)},
        crust=0.01,
    ),
    Assemblage(
        "gold quartz",
        {"quartz": (80, 0.3), **_SULPHIDES, "arsenopyrite": (1, 1.4), "muscovite": (3, 1.0), "chlorite": (2, 1.0),
         "dolomite": (2, 1.4), "siderite": (0.5, 1.4), "tourmaline": (0.2, 1.5), "scheelite": (0.02, 1.6),
         "stibnite": (0.03, 1.7), "tetrahedrite": (0.02, 1.6), "gold": (1e-3, 1.0)},
        share=1.5,
        crust=0.1,
        factors=_PRECIOUS,
    ),
    Assemblage(
        "tin-tungsten ore",
        {"quartz": (55, 0.4), "muscovite": (10, 0.9), "topaz": (3, 1.3), "tourmaline": (2, 1.3), "fluorite": (1, 1.4),
         "lepidolite": (1, 1.6), "potassium_feldspar": (8, 1.0), "albite": (8, 1.0), "cassiterite": (1.0, 1.4),
         "wolframite": (0.5, 1.6), "scheelite": (0.3, 1.7), "arsenopyrite": (0.5, 1.4), "bismuthinite": (0.03, 1.6),
         "molybdenite": (0.03, 1.6), "columbite": (0.03, 1.5), "goethite": (1, 1.0), "chalcopyrite": (0.2, 1.4)},
        crust=0.2,
    ),
    Assemblage(
        "heavy-mineral sand",
        {"quartz": (40, 1.1), "ilmenite": (25, 0.9), "rutile": (4, 1.1), "zircon": (6, 1.1), "magnetite": (5, 1.3),
         "garnet": (8, 1.2), "monazite": (0.5, 1.4), "xenotime": (0.05, 1.4), "titanite": (1, 1.2),
         "epidote": (3, 1.2), "hornblende": (4, 1.2), "chromite": (0.5, 1.5), "cassiterite": (0.03, 1.6)},
        crust=0.02,
    ),
    Assemblage(
        "rare-earth ore",
        {"calcite": (25, 1.1), "dolomite": (15, 1.2), "bastnasite": (6, 1.2), "monazite": (2, 1.4),
         "xenotime": (0.2, 1.5), "barite": (6, 1.4), "fluorite": (4, 1.3), "apatite": (4, 1.2), "magnetite": (6, 1.2),
         "aegirine": (4, 1.3), "columbite": (0.3, 1.5), "celestine": (0.5, 1.6), "quartz": (6, 1.2)},
        share=0.7,
        crust=0.05,
    ),
    Assemblage(
        "uranium ore",
        {**_GANGUE, "uraninite": (0.5, 1.6), "pyrite": (2, 1.2), "galena": (0.1, 1.4), "molybdenite": (0.03, 1.5),
         "zircon": (0.03, 0.8), "goethite": (2, 1.2), "organic_matter": (0.3, 1.4)},
        share=0.5,
        crust=0.5,
        traces={"V": 300, "Se": 5, "Mo": 20},
        trace_log_sd=0.8,
    ),
    Assemblage(
        "bauxite",
        {"gibbsite": (60, 0.4), "kaolinite": (10, 1.0), "goethite": (10, 1.0), "hematite": (10, 1.0),
         "rutile": (2.5, 0.5), "quartz": (2, 1.3), "zircon": (0.08, 0.5), "ilmenite": (0.3, 1.0)},
        crust=0.1,
    ),
    Assemblage(
        "antimony-mercury ore",
        {"quartz": (55, 0.5), "stibnite": (4, 1.4), "cinnabar": (0.5, 1.8), "pyrite": (3, 1.1),
         "arsenopyrite": (0.8, 1.4), "calcite": (8, 1.3), "illite": (8, 0.9), "barite": (0.3, 1.6),
         "gold": (2e-4, 1.2)},
        share=0.5,
        crust=0.2,
    ),
    Assemblage(
        "fluorite-barite ore",
        {"fluorite": (35, 1.1), "barite": (20, 1.4), "quartz": (20, 1.0), "calcite": (10, 1.2), "celestine": (1, 1.8),
         "galena": (0.5, 1.5), "sphalerite": (0.5, 1.5), "illite": (3, 1.0)},
        share=0.7,
        crust=0.05,
    ),
    Assemblage(
        "lithium pegmatite",
        {"spodumene": (15, 0.8), "albite": (30, 0.4), "quartz": (28, 0.3), "potassium_feldspar": (15, 0.8),
         "lepidolite": (3, 1.3), "muscovite": (4, 0.9), "columbite": (0.05, 1.3), "cassiterite": (0.05, 1.3),
         "apatite": (0.3, 0.9), "tourmaline": (0.3, 1.3)},
        share=0.5,
        crust=0.05,
        traces={"Rb": 1200, "Cs": 150, "Ta": 60},
        trace_log_sd=0.7,
    ),
)  # fmt: skip

_PLANT_TRACES = {
    "Fe": 150, "Mn": 80, "Zn": 35, "Cu": 8, "Sr": 35, "Ba": 25, "Rb": 12, "Br": 8, "Al": 120, "Na": 400, "Ni": 1.5,
    "Ti": 8, "Mo": 1, "B": 25, "Pb": 0.8, "Cr": 0.8, "I": 0.3,
}  # fmt: skip
_NUTRIENTS = {
    "potassium_malate": 0.4, "potassium_phosphate": 0.3, "protein": 0.3, "magnesium_pectate": 0.3, "Zn": 0.2,
    "Mn": 0.2, "Fe": 0.2,
}  # fmt: skip
_DUST = {"quartz": (0.2, 1.1), "illite": (0.1, 1.1), "calcite": (0.05, 1.3)}

PLANT = (
    Assemblage(
        "leaf",
        {"cellulose": (50, 0.2), "lignin": (15, 0.3), "protein": (16, 0.4), "potassium_malate": (4, 0.6),
         "calcium_oxalate": (4, 0.8), "magnesium_pectate": (3, 0.5), "potassium_phosphate": (0.9, 0.6),
         "potassium_sulphate": (0.5, 0.8), "sylvite": (0.8, 1.0), "opal": (0.5, 1.3), **_DUST},
        share=2,
        traces=_PLANT_TRACES,
        trace_log_sd=0.7,
        factors=(_NUTRIENTS, {"Mn": 0.8}),
        fluid_share=0.06,
        fluid_logit_sd=0.5,
    ),
    Assemblage(
        "fresh leaf",
        {"cellulose": (50, 0.2), "lignin": (12, 0.3), "protein": (18, 0.4), "potassium_malate": (5, 0.6),
         "calcium_oxalate": (4, 0.8), "magnesium_pectate": (3, 0.5), "potassium_phosphate": (1.0, 0.6),
         "potassium_sulphate": (0.5, 0.8), "sylvite": (0.9, 1.0), "opal": (0.4, 1.3), **_DUST},
        traces=_PLANT_TRACES,
        trace_log_sd=0.7,
        factors=(_NUTRIENTS,),
        fluid_share=0.75,
        fluid_logit_sd=0.5,
    ),
    Assemblage(
        "straw",
        {"cellulose": (68, 0.1), "lignin": (17, 0.3), "protein": (4, 0.5), "potassium_malate": (2, 0.7),
         "calcium_oxalate": (0.7, 0.7), "magnesium_pectate": (1, 0.5), "potassium_phosphate": (0.3, 0.6),
         "potassium_sulphate": (0.3, 0.8), "sylvite": (1.0, 0.8), "opal": (3, 0.9), **_DUST},
        traces=_PLANT_TRACES,
        trace_log_sd=0.7,
        factors=(_NUTRIENTS, {"opal": 0.5}),
        fluid_share=0.08,
        fluid_logit_sd=0.4,
    ),
    Assemblage(
        "wood",
        {"cellulose": (70, 0.1), "lignin": (27, 0.2), "protein": (1, 0.6), "potassium_malate": (0.3, 0.8),
         "calcium_oxalate": (0.4, 0.9), "magnesium_pectate": (0.2, 0.7), "potassium_phosphate": (0.04, 0.8),
         "potassium_sulphate": (0.03, 0.8), "sylvite": (0.02, 1.0), "opal": (0.02, 1.2)},
        share=0.7,
        traces={element: 0.3 * content for element, content in _PLANT_TRACES.items()},
        trace_log_sd=0.9,
        factors=(_NUTRIENTS,),
        fluid_share=0.08,
        fluid_logit_sd=0.5,
    ),
    Assemblage(
        "seed",
        {"cellulose": (60, 0.2), "lignin": (6, 0.5), "protein": (25, 0.5), "potassium_phosphate": (1.6, 0.4),
         "potassium_malate": (0.6, 0.6), "magnesium_pectate": (2, 0.4), "calcium_oxalate": (0.3, 0.9),
         "potassium_sulphate": (0.1, 0.8), "sylvite": (0.05, 1.0), "opal": (0.05, 1.3)},
        share=0.7,
        traces=_PLANT_TRACES,
        trace_log_sd=0.6,
        factors=(_NUTRIENTS,),
        fluid_share=0.1,
        fluid_logit_sd=0.3,
    ),
)  # fmt: skip

PURE_ELEMENTS = (
    "C", "Mg", "Al", "Si", "S", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ge", "As", "Se", "Y",
    "Zr", "Nb", "Mo", "Ag", "Cd", "In", "Sn", "Sb", "Te", "La", "Ce", "Pr", "Nd", "Sm", "Gd", "Tb", "Dy", "Ho",
    "Er", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Pt", "Au", "Hg", "Pb", "Bi", "U",
)  # fmt: skip
ELEMENT = tuple(
    Assemblage(
        f"pure {element}",
        {f"pure_{element}": (100.0, 0.0)},
        traces=dict.fromkeys(("Al", "Si", "Fe", "Cu", "Ca", "Zn", "Ni"), 40.0),
        trace_log_sd=1.2,
    )
    for element in PURE_ELEMENTS
)
"""Solid elements as foils, pieces and powders, with a few impurities."""

_GLASS_TRACES = {
    "S": 500, "Cl": 300, "Ti": 150, "V": 8, "Cr": 20, "Mn": 60, "Co": 5, "Ni": 8, "Cu": 15, "Zn": 25, "As": 20,
    "Se": 3, "Rb": 15, "Sr": 60, "Y": 6, "Zr": 80, "Nb": 3, "Mo": 2, "Sn": 30, "Sb": 20, "Ba": 120, "La": 8, "Ce": 30,
    "Nd": 8, "Pb": 30, "Th": 2, "U": 2,
}  # fmt: skip

_DOPANTS = (
    "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Rb", "Sr", "Y", "Zr", "Nb",
    "Mo", "Ag", "Cd", "In", "Sn", "Sb", "Cs", "Ba", "La", "Ce", "Nd", "Sm", "Gd", "Yb", "Hf", "W", "Au", "Pb",
    "Bi", "Th", "U",
)  # fmt: skip

GLASS = (
    Assemblage(
        "soda-lime glass",
        {"silica": (72, 0.05), "soda": (14, 0.12), "lime": (9, 0.2), "magnesia": (3, 0.6), "alumina": (1.3, 0.6),
         "potash": (0.5, 0.9), "iron_oxide": (0.15, 1.0)},
        share=2,
        traces=_GLASS_TRACES,
        trace_log_sd=1.2,
    ),
    Assemblage(
        "ash glass",
        {"silica": (55, 0.12), "lime": (20, 0.3), "potash": (14, 0.5), "magnesia": (4, 0.5), "alumina": (2, 0.6),
         "soda": (1.5, 1.0), "iron_oxide": (0.8, 0.7)},
        traces={**_GLASS_TRACES, "P": 9000, "Mn": 7000},
        trace_log_sd=0.9,
    ),
    Assemblage(
        "borosilicate glass",
        {"silica": (76, 0.06), "boron_oxide": (13, 0.3), "soda": (4.5, 0.4), "alumina": (3, 0.5), "potash": (1, 0.8),
         "lime": (1, 1.0), "barium_oxide": (0.5, 1.6), "iron_oxide": (0.08, 0.8)},
        traces=_GLASS_TRACES,
        trace_log_sd=1.2,
    ),
    Assemblage(
        "lead glass",
        {"silica": (55, 0.15), "lead_oxide": (28, 0.5), "potash": (11, 0.4), "soda": (2, 0.9), "alumina": (0.5, 1.0),
         "arsenic_oxide": (0.2, 1.0), "antimony_oxide": (0.2, 1.0), "lime": (0.3, 1.2), "iron_oxide": (0.05, 0.9)},
        traces=_GLASS_TRACES,
        trace_log_sd=1.2,
    ),
    Assemblage(
        "optical glass",
        {"silica": (40, 0.5), "boron_oxide": (12, 1.2), "barium_oxide": (18, 1.0), "zinc_oxide": (6, 1.2),
         "titanium_oxide": (4, 1.4), "zirconium_oxide": (2, 1.2), "strontium_oxide": (3, 1.5), "potash": (5, 1.0),
         "soda": (3, 1.0), "lithium_oxide": (0.5, 1.3), "lead_oxide": (1, 1.8), "antimony_oxide": (0.3, 1.0)},
        traces=_GLASS_TRACES,
        trace_log_sd=1.2,
    ),
    Assemblage(
        "doped glass",
        {"silica": (72, 0.05), "soda": (14, 0.1), "lime": (12, 0.15), "alumina": (2, 0.3)},
        traces=dict.fromkeys(_DOPANTS, 60.0),
        trace_log_sd=0.5,
        factors=(dict.fromkeys(_DOPANTS, 1.8),),
    ),
)  # fmt: skip
