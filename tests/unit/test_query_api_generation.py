"""The API's statements asked of one generation: every view and the register are replaced, and nothing else."""

from __future__ import annotations

import re

import pytest
from sqlalchemy import TextClause

from projector.tables import VIEWS
from query_api import queries
from query_api.generation import of_generation, relations_of

STATEMENTS = {name: str(clause) for name, clause in vars(queries).items() if isinstance(clause, TextClause)}


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_of_the_api_reads_a_view_any_more(name):
    asked = of_generation(STATEMENTS[name], relations_of("g7"))
    assert set(re.findall(r"\brxstore\.\w+", asked)) <= {"rxstore.generation"}
    assert "rx_g7." in asked or name == "LIVE_GENERATION"


def test_each_view_is_replaced_by_the_select_that_makes_it_up():
    for view, query in VIEWS.items():
        asked = of_generation(f"SELECT v.* FROM rxstore.{view} v", relations_of("g7"))
        assert asked == f"SELECT v.* FROM ({query.format(schema='rx_g7')}) v"


def test_the_register_shows_that_generation_as_if_it_were_live():
    asked = of_generation("SELECT g.name FROM rxstore.generation g WHERE g.state = 'live'", relations_of("g7"))
    assert "WHERE r.name = 'g7') g WHERE g.state = 'live'" in asked


@pytest.mark.parametrize("name", ["", "G7", "g7; DROP", "7g", "g" * 32])
def test_what_is_no_name_gets_into_no_statement(name):
    with pytest.raises(ValueError, match="a generation's name"):
        relations_of(name)
