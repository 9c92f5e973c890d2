"""What organs are called in SNOMED CT, so that segmentations mean the same to other programs.

The codes are those of DICOM's context groups (PS3.16, CID 7151 and those that it includes) where these have the organ;
portal and splenic vein as one, and the iliopsoas, are not in them and are called as TotalSegmentator calls them.
"""

from __future__ import annotations

from typing import NamedTuple

from partialseg.data.classes import organ_name

#: Of codes of one's own; the standard (PS3.16, 8.2) asks for 99 in front.
PRIVATE_SCHEME = "99PARTIALSEG"


class Code(NamedTuple):
    """A code.

    Attributes:
        value: Its value.
        meaning: What it means, for people.
        scheme: "SCT" for SNOMED CT.
    """

    value: str
    meaning: str
    scheme: str = "SCT"


class OrganCode(NamedTuple):
    """How a segment is coded.

    Attributes:
        category: "Anatomical Structure", or "Morphologically Abnormal Structure" for tumours.
        kind: What it is.
        side: Left or right; None where the organ has no side.
        region: The organ that a tumour is in; None otherwise.
    """

    category: Code
    kind: Code
    side: Code | None = None
    region: Code | None = None


ANATOMICAL = Code("91723000", "Anatomical Structure")
ABNORMAL = Code("49755003", "Morphologically Abnormal Structure")
SIDES = {"left": Code("7771000", "Left"), "right": Code("24028007", "Right")}
_NEOPLASM = Code("108369006", "Neoplasm")

#: By the name of `partialseg.data.classes.KNOWN_ORGANS`, without the side.
_KINDS = {
    "liver": Code("10200004", "Liver"),
    "spleen": Code("78961009", "Spleen"),
    "pancreas": Code("15776009", "Pancreas"),
    "kidney": Code("64033007", "Kidney"),
    "stomach": Code("69695003", "Stomach"),
    "gallbladder": Code("28231008", "Gallbladder"),
    "esophagus": Code("32849002", "Esophagus"),
    "duodenum": Code("38848004", "Duodenum"),
    "aorta": Code("15825003", "Aorta"),
    "inferior_vena_cava": Code("64131007", "Inferior vena cava"),
    "portal_and_splenic_veins": Code("110765007", "Portal vein and splenic vein"),
    "adrenal_gland": Code("23451007", "Adrenal gland"),
    "small_bowel": Code("30315005", "Small intestine"),
    "colon": Code("71854001", "Colon"),
    "rectum": Code("34402009", "Rectum"),
    "urinary_bladder": Code("89837001", "Bladder"),
    "prostate": Code("41216001", "Prostate"),
    "uterus": Code("35039007", "Uterus"),
    "femoral_head": Code("2812003", "Femoral head"),
    "femur": Code("71341001", "Femur"),
    "lung": Code("39607008", "Lung"),
    "heart": Code("80891009", "Heart"),
    "trachea": Code("44567001", "Trachea"),
    "thyroid_gland": Code("69748006", "Thyroid"),
    "spinal_cord": Code("2748008", "Spinal cord"),
    "portal_vein": Code("32764006", "Portal vein"),
    "splenic_vein": Code("35819009", "Splenic vein"),
    "superior_vena_cava": Code("48345005", "Superior vena cava"),
    "superior_mesenteric_artery": Code("42258001", "Superior mesenteric artery"),
    "celiac_trunk": Code("57850000", "Truncus coeliacus"),
    "iliac_artery": Code("73634005", "Common iliac artery"),
    "iliac_vein": Code("46027005", "Common iliac vein"),
    "bile_ducts": Code("28273000", "Bile duct"),
    "psoas": Code("68455001", "Iliopsoas muscle"),
}
#: SNOMED CT has no code for what these classes hold, and one for a part of them would say something else.
_OF_ONE_S_OWN = {
    "prostate_or_uterus": Code("PROSTATE_UTERUS", "Prostate or uterus", PRIVATE_SCHEME),
    "hepatic_vessels": Code("HEPATIC_VESSELS", "Vessels of liver", PRIVATE_SCHEME),
}


def organ_code(name: str) -> OrganCode:
    """How a class is coded.

    An organ that is not known gets a private code, made of its name: the segment is told apart from others, but
    another program does not know what it is.

    Example:
        >>> code = organ_code("left_kidney")
        >>> code.kind, code.side.meaning
        (Code(value='64033007', meaning='Kidney', scheme='SCT'), 'Left')
        >>> organ_code("liver_tumour").region.meaning, organ_code("appendix").kind.scheme
        ('Liver', '99PARTIALSEG')
    """
    spelled = organ_name(name)
    side, _, base = spelled.partition("_") if spelled.startswith(("left_", "right_")) else ("", "", spelled)
    region = _KINDS.get(base.removesuffix("_tumour"))
    if base.endswith("_tumour") and region is not None:
        return OrganCode(ABNORMAL, _NEOPLASM, SIDES.get(side), region)
    kind = _KINDS.get(base) or _OF_ONE_S_OWN.get(base)
    if kind is None:  # a value has 16 characters at most, a meaning 64
        kind = Code(base.upper()[:16], name.replace("_", " ")[:64], PRIVATE_SCHEME)
    return OrganCode(ANATOMICAL, kind, SIDES.get(side))


def is_private(code: OrganCode) -> bool:
    """Whether other programs do not know the code."""
    return code.kind.scheme == PRIVATE_SCHEME
