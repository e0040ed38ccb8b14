"""Words that tell clusters of texts apart."""

import numpy as np

from evaluate.reporting.typical_words import typical_words

TEXTS = [
    *("red apple pie recipe", "green apple tree", "apple pie with cream"),
    *("fast car engine recipe", "car engine oil", "old car"),
    *("the of and", "zebra"),
]
CLUSTERS = np.array([0, 0, 0, 1, 1, 1, 2, 2])


def test_words_are_those_that_are_frequent_in_a_cluster_and_rare_in_the_others():
    assert typical_words(TEXTS, CLUSTERS, 4, 2) == [["apple", "pie"], ["car", "engine"], [], []]
    assert typical_words(TEXTS, CLUSTERS, 4, 3)[0] == ["apple", "pie", "recipe"]


def test_weights_are_class_based_tf_idf():
    """The order of two words by the formula, worked out by hand: a frequent common word and a rarer typical one."""
    texts = ["common rare", "common rare", "common", "common", "common banana", "common banana"]
    clusters = np.array([0, 0, 0, 1, 1, 1])
    # Cluster 0 has 3 common and 2 rare; 10 words in all, 5 a cluster: 3/5·log(1 + 5/6) < 2/5·log(1 + 5/2).
    assert typical_words(texts, clusters, 2, 5) == [["rare", "common"], ["banana", "common"]]


def test_any_script_has_words_and_texts_without_any_have_none():
    texts = ["красный дом", "красный лес", "größe 12 <b>", "größe"]
    assert typical_words(texts, np.array([0, 0, 1, 1]), 2, 3) == [["красный"], ["größe"]]
    assert typical_words(["1 2 3", "", "!"], np.array([0, 1, 1]), 2, 3) == [[], []]
