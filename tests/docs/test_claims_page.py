"""docs/claims.md is what the recipes of the claims and the recorded findings say.

``python -m tests.docs.test_claims_page`` writes it anew.
"""

from __future__ import annotations

from pathlib import Path

from redraft.study.claim import Claim, names
from redraft.study.experiment import analysis_of
from redraft.study.report import claims_page, read_records

ROOT = Path(__file__).parents[2]
PAGE, RECORDS = ROOT / "docs" / "claims.md", ROOT / "benchmarks" / "study"


def page() -> str:
    claims = [Claim.load(name) for name in names()]
    rules = {claim.id: analysis_of(claim).rule() for claim in claims}
    return claims_page(claims, rules, read_records(RECORDS))


def test_the_page_says_what_the_records_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.docs.test_claims_page"


def test_every_record_is_that_of_a_claim_and_its_rule() -> None:
    for name, record in read_records(RECORDS).items():
        claim = Claim.load(name, record.budget)
        assert (record.id, record.claim) == (name, claim.claim)
        assert record.rule == analysis_of(claim).rule(), f"{name}: the rule was changed after the run"


def test_the_records_are_small() -> None:
    assert sum(path.stat().st_size for path in RECORDS.glob("*")) < 1_000_000


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
