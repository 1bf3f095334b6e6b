"""The tiny configs cover transformers' causal-LM mapping, and each is of the type that its name says."""

import transformers as tf
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

import every_architecture


def test_every_model_type_of_the_mapping_is_there_or_says_why_not():
    built = {name.partition(":")[0] for name in every_architecture.CONFIGS}
    assert built | set(every_architecture.CANNOT) == set(CAUSAL)
    assert not built & set(every_architecture.CANNOT)


def test_every_config_is_of_the_type_in_its_name():
    for name, configure in every_architecture.CONFIGS.items():
        assert type(configure()) is tf.CONFIG_MAPPING[name.partition(":")[0]], name
