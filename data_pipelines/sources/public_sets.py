"""Public data sets: where their files are, how large, under which licence.

Checksums are those that the origin, or a benchmark that uses the files, publishes; ""
where none is known. Nothing here has been measured by us.
"""

from collections.abc import Mapping
import dataclasses

HUGGING_FACE = "https://huggingface.co/datasets"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicFile:
    """A file to fetch.

    Attributes:
        name: of the file in --raw.
        urls: where it is; a later one is used where those before it fail.
        size_bytes: about, for the disk; 0 = not known.
        checksum: "md5:..." or "sha256:..."; "" = none is published.
        unpacked_bytes: about, of the files in a .tar.gz; a .zip tells itself.
        unpacked: name of a file in the archive -> its checksum.
    """

    name: str
    urls: tuple[str, ...]
    size_bytes: int = 0
    checksum: str = ""
    unpacked_bytes: int = 0
    unpacked: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def is_archive(self) -> bool:
        """Says whether the file is unpacked into --raw; a lone .gz stays packed."""
        return self.name.endswith((".zip", ".tar.gz"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublicSet:
    """Files that make a data set.

    Attributes:
        pipeline: module of data_pipelines that converts them.
        page: where the origin describes the set.
        licence: shown before the download, and to be accepted.
        files: what is fetched.
        needs_kaggle: the files are given only to the user of a Kaggle token.
    """

    pipeline: str
    page: str
    licence: str
    files: tuple[PublicFile, ...]
    needs_kaggle: bool = False


# Kilobytes and md5 of day_0.gz .. day_23.gz: github.com/mlcommons/inference,
# recommendation/dlrm/pytorch/README.md. The copy on Hugging Face was cut short for a
# while (github.com/facebookresearch/dlrm, issue 413): these sums would tell.
CRITEO_DAYS = (
    (15927304, "6cef23542552c3195e9e6e2bdbc4c235"),
    (16292832, "94b73908ee8f912c175420376c8952db"),
    (16022296, "c3c0272c26cfaa03d932b2856a751ff5"),
    (14779644, "b727ecfaaf482507bb998248833aa4c2"),
    (12514396, "b99eaa6e324e49d9df4e6f840e76b6d9"),
    (14169436, "1294d0a56a90294aebf80133078d9879"),
    (16753584, "68586521483313e13aefb29e7b767fdb"),
    (16465452, "a2c1c4bfec20fc88b0b504175a16b644"),
    (15845316, "faabf247fd56140a76effa6a3da63253"),
    (16195668, "ee3347a28c1dd2fb2c92094e643c132b"),
    (15201768, "d043c2ec0346eb4c71aaae935416688e"),
    (12698432, "8d4ba32f0c4f654a3860b6f2ae1a8ea7"),
    (14029428, "908480917ed39be2a2ad2e1c339c40b4"),
    (15953380, "567d6bfa672dd10a0cf76feaec0cf92b"),
    (15882872, "ed377357aecaccc5f93c754c4819fd8d"),
    (15382724, "8e91f2a8d3d95202dfc3b22b88064c12"),
    (14606256, "387269870bf8ec7d285cf0e8ce82e92e"),
    (13483480, "48d3538fcf04807e0be4d72072dbda0b"),
    (11796984, "f26e23b6ef242f40b0e3fd92c986170c"),
    (13059032, "3f6f36657b0ff1258428356451eea6c8"),
    (16022492, "db7ff2b830817d3b10960f02bfb68547"),
    (15707044, "f1a4ba7f7a555cb4a7e724a082479f4a"),
    (15463520, "848ae20c4eab730ae487acc8ddaf52ba"),
    (14591792, "a2748bdbc67dd544b3ac470c4f1a52df"),
)


def _kuairand(
    version: str, *, size_bytes: int, md5: str, unpacked_bytes: int
) -> PublicSet:
    # The sums stand in github.com/chongminggao/KuaiRand and at zenodo.
    name = f"KuaiRand-{version}.tar.gz"
    return PublicSet(
        pipeline="kuairand",
        page="https://kuairand.com",
        licence=(
            "CC BY-SA 4.0: with attribution (Gao et al., CIKM 2022) and shared alike.\n"
            "The text stands in the archive and at the page."
        ),
        files=(
            PublicFile(
                name=name,
                urls=(f"https://zenodo.org/records/10439422/files/{name}",),
                size_bytes=size_bytes,
                checksum=f"md5:{md5}",
                unpacked_bytes=unpacked_bytes,
            ),
        ),
    )


def _movielens(version: str, *, size_bytes: int, sha256: str) -> PublicSet:
    # The sums are those of TensorFlow Datasets, url_checksums.
    name = f"ml-{version}.zip"
    return PublicSet(
        pipeline="movielens",
        page=f"https://grouplens.org/datasets/movielens/{version}/",
        licence=(
            "GroupLens: research; no commercial use and no redistribution without "
            "their permission.\nCite Harper and Konstan (2015); full text in the "
            "archive's README."
        ),
        files=(
            PublicFile(
                name=name,
                urls=(f"https://files.grouplens.org/datasets/movielens/{name}",),
                size_bytes=size_bytes,
                checksum=f"sha256:{sha256}",
            ),
        ),
    )


RECHORUS = (
    "https://raw.githubusercontent.com/THUwangcy/ReChorus/"
    "e74389752d7b37120e985229d26693ec00b909e5/data/Grocery_and_Gourmet_Food"
)

SETS = {
    "criteo_kaggle": PublicSet(
        pipeline="criteo",
        page="https://www.kaggle.com/c/criteo-display-ad-challenge",
        licence=(
            "Criteo's terms for the data of the Display Advertising Challenge (Kaggle, "
            "2014).\nThey are Criteo's to state: read them at ailab.criteo.com."
        ),
        files=(
            PublicFile(
                name="kaggle-display-advertising-challenge-dataset.tar.gz",
                urls=(
                    "https://criteostorage.blob.core.windows.net/"
                    "criteo-research-datasets/"
                    "kaggle-display-advertising-challenge-dataset.tar.gz",
                    "https://ndownloader.figshare.com/files/10082655",
                ),
                # figshare.com/articles/dataset/5732310
                size_bytes=4_576_820_670,
                checksum="md5:df9b1b3766d9ff91d5ca3eb3d23bed27",
                unpacked_bytes=12_600_000_000,
                unpacked={"train.txt": "md5:4dcfe6c4b7783585d4ae3c714994f26a"},
            ),
        ),
    ),
    "criteo_1tb": PublicSet(
        pipeline="criteo",
        page=f"{HUGGING_FACE}/criteo/CriteoClickLogs",
        licence=(
            "CC BY-NC-SA 4.0, as Criteo states at the page:\n"
            "non-commercial, with attribution, shared alike."
        ),
        files=tuple(
            PublicFile(
                name=f"day_{day}.gz",
                urls=(
                    f"{HUGGING_FACE}/criteo/CriteoClickLogs/resolve/main/day_{day}.gz",
                    f"https://storage.googleapis.com/criteo-cail-datasets/day_{day}.gz",
                ),
                size_bytes=1024 * kilobytes,
                checksum=f"md5:{md5}",
            )
            for day, (kilobytes, md5) in enumerate(CRITEO_DAYS)
        ),
    ),
    "avazu": PublicSet(
        pipeline="avazu",
        page="https://www.kaggle.com/c/avazu-ctr-prediction",
        licence=(
            "The rules of the Kaggle competition, for academic use.\n"
            "Accept them at the page, with the account whose token is used."
        ),
        files=(
            PublicFile(
                name="train.gz",
                urls=(
                    "https://www.kaggle.com/api/v1/competitions/data/download/"
                    "avazu-ctr-prediction/train.gz",
                ),
            ),
        ),
        needs_kaggle=True,
    ),
    "kuairand_pure": _kuairand(
        "Pure",
        size_bytes=47_432_272,
        md5="0820331067a3784d9691136f772b35a7",
        unpacked_bytes=194_000_000,
    ),
    "kuairand_1k": _kuairand(
        "1K",
        size_bytes=1_135_436_720,
        md5="6b0b9c8222d67fcd4c676218edca3f1f",
        unpacked_bytes=4_300_000_000,
    ),
    "kuairand_27k": _kuairand(
        "27K",
        size_bytes=9_892_191_178,
        md5="3e3c799a24e2d23a4d2c757fbf9adf59",
        unpacked_bytes=46_000_000_000,
    ),
    "movielens_100k": _movielens(
        "100k",
        size_bytes=4_924_029,
        sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    ),
    "movielens_1m": _movielens(
        "1m",
        size_bytes=5_917_549,
        sha256="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    ),
    "movielens_25m": _movielens(
        "25m",
        size_bytes=261_978_986,
        sha256="8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa",
    ),
    "frappe_x1": PublicSet(
        pipeline="frappe",
        page=f"{HUGGING_FACE}/reczoo/Frappe_x1",
        licence=(
            "Research, non-commercial, no redistribution (Baltrunas et al., arXiv "
            "1505.03014).\nIn the split of AFN (AAAI 2020), as RecZoo publishes it."
        ),
        files=(
            PublicFile(
                name="Frappe_x1.zip",
                urls=(f"{HUGGING_FACE}/reczoo/Frappe_x1/resolve/main/Frappe_x1.zip",),
                unpacked={  # the README at the page
                    "train.csv": "md5:ba7306e6c4fc19dd2cd84f2f0596d158",
                    "valid.csv": "md5:88d51bf2173505436d3a8f78f2a59da8",
                    "test.csv": "md5:3470f6d32713dc5f7715f198ca7c612a",
                },
            ),
        ),
    ),
    "amazon_grocery": PublicSet(
        pipeline="amazon",
        page="https://github.com/THUwangcy/ReChorus",
        licence=(
            "None is stated at the origin: reviews of Amazon's customers, 2000 to 2014 "
            "(McAuley),\nprepared by ReChorus. Assume no right to pass them on."
        ),
        files=tuple(
            PublicFile(name=name, urls=(f"{RECHORUS}/{name}",))
            for name in ("train.csv", "dev.csv", "test.csv", "item_meta.csv")
        ),
    ),
}
