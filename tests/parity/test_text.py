"""Text in and out against transformers."""

import pytest
import transformers
from hypothesis import given
from hypothesis import strategies as st
from text_backends import BACKENDS

from moeworks.generate.stream import continuation_text


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]()


@given(text=st.text(alphabet="ab c!😀", max_size=60), place=st.floats(0, 1))
def test_as_the_text_generation_pipeline_of_transformers(backend, text, place):
    """It decodes prompt and answer together, and cuts the prompt's text off."""
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    ids = reference.encode(text, add_special_tokens=False)
    cut = int(place * len(ids))
    prompt = reference.decode(ids[:cut], clean_up_tokenization_spaces=False)
    if "\ufffd" not in prompt:
        whole = reference.decode(ids, clean_up_tokenization_spaces=False)
        assert continuation_text(backend.decode, ids[:cut], ids[cut:]) == whole[len(prompt) :]
