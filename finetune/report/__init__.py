"""The report: facts gathered once, written as report.json, one self-contained HTML page and REPORT.md."""
