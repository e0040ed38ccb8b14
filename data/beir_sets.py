"""The 18 collections of BEIR, and what each wants of an evaluation.

Sizes and grades of relevance are those of BEIR's own table (Thakur et al., arXiv:2104.08663, Table 1), by which a
folder is checked: with other sizes, figures cannot be compared with published ones. Lengths in tokens are those of
COCO-DR's evaluation (arXiv:2210.15212). The metrics treat all sets alike, since they are trec_eval's: graded
judgments gain their grade, and a passage with the query's own id is left out (ArguAna's and Quora's queries are
passages of the collection; BEIR's evaluation leaves them out everywhere).
"""

from dataclasses import dataclass

from utils.runtime.errors import InputError
from utils.runtime.logs import say

QUERY_LENGTH, PASSAGE_LENGTH = 64, 128
CQADUPSTACK = (
    *("android", "english", "gaming", "gis", "mathematica", "physics"),
    *("programmers", "stats", "tex", "unix", "webmasters", "wordpress"),
)


@dataclass(frozen=True)
class BeirSet:
    """A collection: passages, judged test queries, the highest grade of relevance, and who published it.

    `passage_length` and `query_length` are in tokens. `one_line` texts have their line breaks and indents, left over
    from a newspaper's markup, replaced by single blanks. `parts` are evaluated by themselves, and the mean over them
    counts. `access` says where a set is had that BEIR may not distribute.
    """

    passages: int
    queries: int
    grades: int
    source: str
    query_length: int = QUERY_LENGTH
    passage_length: int = PASSAGE_LENGTH
    one_line: bool = False
    parts: tuple[str, ...] = ()
    access: str = ""


SETS = {
    "trec-covid": BeirSet(171_332, 50, 2, "Voorhees et al., SIGIR Forum 2020, arXiv:2005.04474"),
    "bioasq": BeirSet(
        *(14_914_602, 500, 1, "Tsatsaronis et al., BMC Bioinformatics 2015, doi:10.1186/s12859-015-0564-6"),
        access="registration at participants-area.bioasq.org",
    ),
    "nfcorpus": BeirSet(3_633, 323, 2, "Boteva et al., ECIR 2016"),
    "nq": BeirSet(2_681_468, 3_452, 1, "Kwiatkowski et al., TACL 2019"),
    "hotpotqa": BeirSet(5_233_329, 7_405, 1, "Yang et al., EMNLP 2018, arXiv:1809.09600"),
    "fiqa": BeirSet(57_638, 648, 1, "Maia et al., WWW 2018 (companion)"),
    "signal1m": BeirSet(
        *(2_866_316, 97, 2, "Suarez et al., ECIR 2018"),
        access="the tweets are fetched by their ids from research.signal-ai.com's list",
    ),
    "trec-news": BeirSet(
        *(594_977, 57, 4, "Soboroff et al., TREC 2018"),
        passage_length=256,
        one_line=True,
        access="the Washington Post collection of trec.nist.gov/data/wapost",
    ),
    "robust04": BeirSet(
        *(528_155, 249, 2, "Voorhees, TREC 2004"),
        passage_length=256,
        one_line=True,
        access="TREC disks 4 and 5 of trec.nist.gov/data/cd45",
    ),
    "arguana": BeirSet(8_674, 1_406, 1, "Wachsmuth et al., ACL 2018", query_length=128),
    "webis-touche2020": BeirSet(382_545, 49, 2, "Bondarenko et al., CLEF 2020"),
    "cqadupstack": BeirSet(457_199, 13_145, 1, "Hoogeveen et al., ADCS 2015", parts=CQADUPSTACK),
    "quora": BeirSet(522_931, 10_000, 1, "Quora question pairs, 2017"),
    "dbpedia-entity": BeirSet(4_635_922, 400, 2, "Hasibi et al., SIGIR 2017"),
    "scidocs": BeirSet(25_657, 1_000, 1, "Cohan et al., ACL 2020, arXiv:2004.07180"),
    "fever": BeirSet(5_416_568, 6_666, 1, "Thorne et al., NAACL 2018, arXiv:1803.05355"),
    "climate-fever": BeirSet(5_416_593, 1_535, 1, "Diggelmann et al., 2020, arXiv:2012.00614"),
    "scifact": BeirSet(5_183, 300, 1, "Wadden et al., EMNLP 2020, arXiv:2004.14974", passage_length=256),
}
OTHER = BeirSet(0, 0, 0, "")  # a collection that is none of BEIR's: usual lengths, nothing to compare with


def find_set(name: str) -> BeirSet:
    """The entry of `SETS`, in upper or lower case, or `OTHER`."""
    return SETS.get(name.lower(), OTHER)


def named_set(name: str) -> BeirSet:
    """The entry of `SETS`; `InputError` with the names that there are."""
    if name not in SETS:
        raise InputError(f"{name!r} is none of BEIR's collections: {', '.join(SETS)}")
    return SETS[name]


def compare_with_published(name: str, passages: int, queries: int, highest_grade: int) -> None:
    """Says where a tokenized test split is not what BEIR published under this name."""
    entry = find_set(name)
    if entry is OTHER:
        return
    for what, found, published in (
        ("passages", passages, entry.passages),
        ("judged queries", queries, entry.queries),
        ("as the highest grade of relevance", highest_grade, entry.grades),
    ):
        if found != published:
            say(f"warning: {name} has {found:,} {what}, and BEIR's {published:,}: do not compare with its figures")
