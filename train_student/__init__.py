"""Stage two: students (and teachers, which are students without teachers) trained on tokens and cached signals."""
