"""The paper's tables and figures as experiments that anyone can rerun, and one report from their results.

`experiment` says what an experiment is, `workspace` what it is given, `catalogue` lists them in the report's
order, `runner` runs those that have no result of the same settings, `report` writes what the results say.
Nothing here is typed: numbers come from results, verdicts from rules over these numbers.
"""
