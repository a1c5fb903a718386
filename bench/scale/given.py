"""What the simulation starts from: each number with where it comes from. All else is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

ISSUE = "what the cluster is built for"
GUESS = "assumed"
ROWS = "measured by bench/scale_rows.py, etcd 3.4.23"
SETTLES = "measured: pushes of one commit by git, settled after 1, 8 and 40 of them"
S3_PRICES = "AWS price list, S3 Standard, us-east-1 (aws.amazon.com/s3/pricing)"
S3_RATES = "docs.aws.amazon.com/AmazonS3/latest/userguide/optimizing-performance.html"
OURS = "measured on the 2-core machine, three replicas on loopback"


@dataclass(frozen=True, slots=True)
class Given:
    """A number that the simulation does not compute."""

    value: float
    unit: str
    source: str


GIVEN: dict[str, Given] = {
    "nodes": Given(1_000, "", ISSUE),
    "repositories": Given(100e6, "", ISSUE),
    "refs": Given(10e9, "", ISSUE),
    "zones": Given(3, "", GUESS),
    "pushes a day": Given(50e6, "", GUESS),
    "reads a day (fetch, clone, ls-remote)": Given(500e6, "", GUESS),
    "part of the reads that send a repository whole": Given(0.1, "", GUESS),
    "peak / average": Given(4, "", GUESS),
    "bytes of a repository, mean": Given(10e6, "B", GUESS),
    "spread of bytes: sigma of the lognormal": Given(2.5, "", GUESS),
    "spread of refs": Given(2.0, "", GUESS + "; the mean is 100"),
    "spread of pushes a day": Given(3.0, "", GUESS + "; half the repositories then see 2 a year"),
    "age of a repository, mean": Given(1_095, "days", GUESS),
    "rows of an etcd cell": Given(7.5e6, "", "the middle of the 5 to 10 million planned"),
    "etcd heap a row": Given(640, "B", ROWS + "; 582 to 693 in five runs"),
    "etcd file a row": Given(111, "B", ROWS),
    "LMDB a row": Given(118, "B", ROWS + ", put in random order"),
    "key and value of such a row": Given(53, "B", ROWS),
    "key and value of a log row": Given(
        153, "B", "docs/formats/refs.md, one change, 40 B of texts"
    ),
    "etcd transactions a second": Given(1_700, "", OURS + ", 32 clients; the lower end"),
    "watch bytes of an etcd member": Given(1.6e9, "B/s", "github.com/etcd-io/etcd/issues/16839"),
    "range reads of a member for replicas": Given(100e6, "B/s", GUESS),
    "blocks a settle puts, small pool": Given(1, "", SETTLES),
    "blocks a settle puts, other pool": Given(7, "", SETTLES),
    "pool that is settled whole, at most": Given((1 << 20) / 3, "B", "docs/adr/0007"),
    "blob put, SeaweedFS": Given(7.6, "ms", OURS),
    "blob put, S3 Express One Zone": Given(8, "ms", "single-digit by its documentation"),
    "blob put, S3 Standard": Given(150, "ms", S3_RATES + ": 100 to 200 ms"),
    "put, 1,000": Given(0.005, "USD", S3_PRICES),
    "get, 1,000": Given(0.0004, "USD", S3_PRICES),
    "storage, GB and month": Given(0.021, "USD", S3_PRICES + ", above 500 TB"),
    "between zones, GB and direction": Given(0.01, "USD", "aws.amazon.com/ec2/pricing/on-demand"),
    "gets a second and prefix": Given(5_500, "", S3_RATES),
    "puts a second and prefix": Given(3_500, "", S3_RATES),
    "prefixes": Given(256, "", "keys are blocks/<aa>/<id>"),
    "bytes of a block": Given(1 << 20, "B", "docs/formats/block.md"),
    "node's network for warming": Given(625e6, "B/s", GUESS + ": half of 10 Gbit/s"),
}


def given(name: str) -> float:
    """Return a number by its name."""
    return GIVEN[name].value


def lognormal(mean: float, sigma: float, points: int = 4_000) -> list[float]:
    """Return that many equally likely values of a lognormal distribution, scaled to its mean."""
    normal = NormalDist()
    found = [math.exp(sigma * normal.inv_cdf((n + 0.5) / points)) for n in range(points)]
    scale = mean * points / sum(found)
    return [scale * value for value in found]


def below(limit: float, mean: float, sigma: float) -> float:
    """Return the part of a lognormal distribution of that mean that is below a limit."""
    middle = math.log(mean) - sigma * sigma / 2
    return NormalDist(middle, sigma).cdf(math.log(limit))


def harmonic(count: float, alpha: float) -> float:
    """Return the sum of n^-alpha for n from 1 to count: exact for 1,000, then by Euler and Maclaurin."""
    few = int(min(count, 1_000))
    exact = sum(n**-alpha for n in range(1, few + 1))
    if count <= few:
        return exact
    power = 1 - alpha
    rest = (count**power - few**power) / power if power else math.log(count / few)
    return exact + rest + (count**-alpha - few**-alpha) / 2
