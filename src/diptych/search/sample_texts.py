"""Sample text queries, on which the recall of approximate search is measured."""

from diptych.index.protocol import Index

_NUM = 200
_NOUNS = """
dog, cat, horse, bird, cow, sheep, elephant, butterfly, fish, flower, tree, forest, mountain, beach, river, sunset, sky,
snow, garden, street, house, bridge, church, kitchen, table, chair, window, car, bicycle, train, plane, boat, man, woman,
child, crowd, wedding, birthday cake, plate of food, page of text
"""
_TEMPLATES = ("a photo of a {}", "a {}", "two of them: {}", "a blurry black and white photo of a {}", "a {} at night")


def sample_texts(index: Index, num: int = _NUM) -> list[str]:
    """Captions of some entries; generic texts if the index has no captions.

    Args:
        index: the index with the captions.
        num: maximum number of texts.
    """
    captions = index.some_captions(num)
    generic = [template.format(noun) for template in _TEMPLATES for noun in " ".join(_NOUNS.split()).split(", ")]
    return captions or generic[:num]
