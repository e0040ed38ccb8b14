"""The words that are typical of each cluster of texts: frequent in it and rare in the others.

By class-based tf-idf (Grootendorst, BERTopic, arXiv:2203.05794): a word's share of a cluster's words times
log(1 + A / f), with A the mean number of words a cluster and f the word's number in all of them.
"""

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

WORD = r"(?u)\b[^\W\d_]{2,24}\b"  # letters of any script
LEAST_TEXTS = 2  # that a typical word stands in


def typical_words(texts: Sequence[str], clusters: np.ndarray, count: int, number: int) -> list[list[str]]:
    """At most `number` words of each of `count` clusters, the most typical first; English stop words are none.

    `clusters` int64 (texts,) is the cluster of each text.
    """
    vectorizer = CountVectorizer(stop_words="english", token_pattern=WORD, min_df=LEAST_TEXTS, dtype=np.int64)
    try:
        words = vectorizer.fit_transform(texts)  # texts, vocabulary; sparse
    except ValueError:  # no word stands in several texts
        return [[] for _ in range(count)]
    of_cluster = np.stack([np.asarray(words[clusters == cluster].sum(0)).ravel() for cluster in range(count)])
    share = of_cluster / np.maximum(of_cluster.sum(1, keepdims=True), 1)
    typical = share * np.log1p(of_cluster.sum() / count / of_cluster.sum(0))
    vocabulary = vectorizer.get_feature_names_out()
    best = np.argsort(-typical, axis=1, kind="stable")[:, :number]
    return [[str(vocabulary[i]) for i in row if typical[cluster, i] > 0] for cluster, row in enumerate(best)]
