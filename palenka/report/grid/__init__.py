"""A grid in the report: its finding, its ranking, a heat map, every run over each option, finalists with paired tests.

analysis.py finds options, noise and pairs in the ranking, figures.py selects numbers for heat_map.py, seed_chart.py and
the report's charts, finding.py writes sentences, and sections.py joins all of it for section.html.j2.
"""
