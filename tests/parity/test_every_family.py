"""The tables of small models have every family that is imported."""

import transformers
from parity.decoders import DECODERS
from parity.encoder_decoders import ENCODER_DECODERS
from parity.encoders import ENCODERS
from parity.image_encoders import IMAGE_ENCODERS
from parity.images_and_texts import IMAGES_AND_TEXTS

from fmjax.interop.families import FAMILIES

TABLES = (DECODERS, ENCODERS, ENCODER_DECODERS, IMAGE_ENCODERS, IMAGES_AND_TEXTS)
# Compared by themselves, in test_transformers_image_text.py.
TOWERS = {"clip_text_model", "clip_vision_model"}


def test_every_family_has_an_entry():
    cases = [case for table in TABLES for case in table.values()]
    classes = {getattr(transformers, case.architecture) for case in cases}
    compared = {cls.config_class.model_type for cls in classes}
    assert compared | TOWERS == {family.model_type for family in FAMILIES}


def test_names_are_of_one_entry():
    names = [name for table in TABLES for name in table]
    assert len(names) == len(set(names))
