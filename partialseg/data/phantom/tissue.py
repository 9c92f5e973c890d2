"""What tissues look like in CT: Hounsfield units by contrast phase, texture, vessels; and names of organs."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

#: The contrast phase is a number: 0 non-contrast, 1 arterial, 2 portal venous, 3 late; mixed in between.
NON_CONTRAST, ARTERIAL, PORTAL_VENOUS, LATE = 0.0, 1.0, 2.0, 3.0


@dataclass(frozen=True)
class Tissue:
    """One tissue.

    Attributes:
        name: Its name.
        hu: Mean HU in the non-contrast, arterial, portal venous and late phase.
        varies: Standard deviation of that mean from patient to patient, HU.
        texture: Standard deviation of its smooth texture inside one patient, HU.
        vessels: Share of vessels in it, by the squared radius in the space of two unit noises (0 for none).
    """

    name: str
    hu: tuple[float, float, float, float]
    varies: float = 5.0
    texture: float = 4.0
    vessels: float = 0.0


TISSUES: tuple[Tissue, ...] = (
    Tissue("air", (-1000, -1000, -1000, -1000), 0, 0),
    Tissue("table", (-350, -350, -350, -350), 60, 30),
    Tissue("skin", (10, 15, 20, 20), 5, 5),
    Tissue("subcutaneous_fat", (-106, -106, -105, -105), 4, 5, 0.006),
    Tissue("visceral_fat", (-98, -97, -95, -95), 4, 6, 0.022),
    Tissue("muscle", (52, 57, 62, 62), 5, 9),
    Tissue("cortical_bone", (520, 530, 530, 530), 70, 40),
    Tissue("marrow", (170, 185, 190, 185), 40, 28),
    Tissue("disc", (80, 82, 84, 85), 8, 6),
    Tissue("nerve", (25, 27, 30, 30), 5, 4),
    Tissue("lung", (-840, -835, -830, -830), 25, 15, 0.05),
    Tissue("heart", (42, 170, 135, 110), 12, 14),
    Tissue("liver", (55, 70, 108, 92), 9, 4, 0.045),
    Tissue("liver_tumour", (38, 62, 62, 64), 12, 10),
    Tissue("spleen", (48, 125, 118, 98), 8, 5),
    Tissue("pancreas", (40, 102, 88, 74), 8, 9),
    Tissue("pancreas_tumour", (36, 58, 62, 64), 9, 8),
    Tissue("kidney_cortex", (33, 165, 178, 160), 14, 7),
    Tissue("kidney_medulla", (31, 72, 155, 168), 12, 7),
    Tissue("kidney_tumour", (34, 110, 95, 78), 22, 22),
    Tissue("cyst", (6, 7, 8, 8), 4, 2),
    Tissue("urine", (6, 8, 30, 380), 6, 6),
    Tissue("bile", (10, 11, 12, 12), 5, 3),
    Tissue("stomach_wall", (42, 78, 88, 78), 8, 8),
    Tissue("stomach_content", (22, 22, 24, 24), 14, 14),
    Tissue("bowel_wall", (42, 82, 92, 78), 8, 9),
    Tissue("bowel_content", (24, 26, 28, 28), 14, 14),
    Tissue("stool", (0, 0, 0, 0), 20, 90),
    Tissue("gas", (-930, -930, -930, -930), 20, 10),
    Tissue("aorta", (42, 290, 150, 122), 14, 3),
    Tissue("vena_cava", (40, 75, 132, 120), 14, 7),
    Tissue("portal_vein", (42, 95, 165, 125), 12, 4),
    Tissue("adrenal", (25, 60, 65, 50), 7, 5),
    Tissue("esophagus", (38, 60, 70, 62), 7, 8),
    Tissue("soft_tissue", (45, 62, 72, 66), 8, 7),
)
TISSUE_ID: dict[str, int] = {tissue.name: index for index, tissue in enumerate(TISSUES)}

#: What fills hollow organs may be marked by oral contrast.
_ORAL = ("stomach_content", "bowel_content")
#: Vessels inside a tissue are as bright as the blood that runs there.
_BLOOD = {
    "liver": "portal_vein",
    "lung": "heart",
    "visceral_fat": "portal_vein",
    "subcutaneous_fat": "vena_cava",
}


@dataclass(frozen=True)
class Appearance:
    """How one scan shows every tissue; arrays over `TISSUES`, float32.

    Attributes:
        hu: Mean, HU.
        texture: Standard deviation of the smooth texture, HU.
        vessels: Share of vessels.
        vessel_hu: Their HU.
    """

    hu: np.ndarray
    texture: np.ndarray
    vessels: np.ndarray
    vessel_hu: np.ndarray


def draw_appearance(
    rng: np.random.Generator,
    phase: float,
    spread: float = 1.0,
    oral: float = 0.0,
    ascites: float = 0.0,
    fatty_liver: float = 0.0,
) -> Appearance:
    """Draw how one patient's tissues look.

    Args:
        rng: Source of random numbers.
        phase: Contrast phase, 0 to 3.
        spread: Factor on the differences between patients.
        oral: Probability that stomach and bowel hold positive oral contrast.
        ascites: Probability that fluid fills the cavity between the organs.
        fatty_liver: Probability that the liver is darker by fat.

    Raises:
        ValueError: If the phase is outside 0 to 3.

    Example:
        >>> look = draw_appearance(np.random.default_rng(0), PORTAL_VENOUS, spread=0.0)
        >>> float(look.hu[TISSUE_ID["liver"]])
        108.0
    """
    if not 0 <= phase <= 3:
        raise ValueError(f"phase must be between 0 (non-contrast) and 3 (late), got {phase}")
    rows = np.array([tissue.hu for tissue in TISSUES], dtype=np.float64)
    mean = np.array([np.interp(phase, range(4), row) for row in rows])
    # Beyond two standard deviations a tissue would be mistaken for another one by anybody.
    drawn = np.clip(rng.standard_normal(len(TISSUES)), -2, 2)
    hu = mean + spread * np.array([tissue.varies for tissue in TISSUES]) * drawn
    if rng.random() < oral:
        hu[[TISSUE_ID[name] for name in _ORAL]] = rng.uniform(120, 320, size=2)
    if rng.random() < ascites:
        hu[TISSUE_ID["visceral_fat"]] = rng.uniform(0, 20)
    if rng.random() < fatty_liver:
        hu[TISSUE_ID["liver"]] -= rng.uniform(20, 55)
    blood = np.array([hu[TISSUE_ID[_BLOOD.get(tissue.name, tissue.name)]] for tissue in TISSUES])
    return Appearance(
        hu=hu.astype(np.float32),
        texture=np.array([tissue.texture for tissue in TISSUES], dtype=np.float32),
        vessels=np.array([tissue.vessels for tissue in TISSUES], dtype=np.float32),
        vessel_hu=blood.astype(np.float32),
    )


#: Parts of organ names, in the order in which they are tried, and the tissue (or composite organ) they mean.
_NAME_PARTS: tuple[tuple[str, str], ...] = (
    (r"liver.*(tumou?r|cancer|lesion)|hepatic.*(tumou?r|lesion)", "liver_tumour"),
    (r"pancrea.*(tumou?r|cancer|lesion)", "pancreas_tumour"),
    (r"kidney.*cyst|cyst", "cyst"),
    (r"tumou?r|cancer|lesion", "kidney_tumour"),
    (r"kidney", "kidney"),
    (r"gall", "bile"),
    (r"bladder", "bladder"),
    (r"liver", "liver"),
    (r"spleen", "spleen"),
    (r"pancrea", "pancreas"),
    (r"stomach", "stomach"),
    (r"o?esophagus", "esophagus"),
    (r"colon|rectum|sigmoid|cecum|caecum", "colon"),
    (r"duoden|intestin|bowel|jejun|ileum", "bowel"),
    (r"aorta|artery|iliac_a", "aorta"),
    (r"cava|ivc", "vena_cava"),
    (r"portal|splenic_vein|vein", "portal_vein"),
    (r"adrenal", "adrenal"),
    (r"femur|bone|vertebra|rib|hip|sacrum|spine|pelvis", "bone"),
    (r"lung", "lung"),
    (r"heart|atrium|ventricle|myocard", "heart"),
    (r"muscle|psoas|iliopsoas|gluteus|autochthon", "muscle"),
)
#: Organs that have an inner structure of several tissues.
COMPOSITES: tuple[str, ...] = ("kidney", "stomach", "colon", "bowel", "bone", "bladder")


def tissue_of_name(name: str) -> str:
    """The tissue (or composite organ) that an organ's or tissue's name means; "soft_tissue" where unknown.

    Example:
        >>> [tissue_of_name(name) for name in ("Left kidney", "gallbladder", "head of femur", "thing")]
        ['kidney', 'bile', 'bone', 'soft_tissue']
    """
    plain = re.sub(r"[\s\-]+", "_", name.strip().lower())
    if plain in TISSUE_ID or plain in COMPOSITES:
        return plain
    return next((tissue for part, tissue in _NAME_PARTS if re.search(part, plain)), "soft_tissue")
