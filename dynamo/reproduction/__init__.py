"""The paper's tables and figures as experiments that anyone can rerun, and one report from their results.

`experiment` defines what an experiment is, `workspace` its inputs; `catalogue` lists them in the report's
order, `runner` runs those that have no result for the same settings, `report` writes the results down.
Nothing here is typed by hand: numbers come from results, verdicts from rules over these numbers.
"""
