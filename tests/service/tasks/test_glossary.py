"""Glossary terms are seen as words, and their translations anywhere."""

from service.tasks.glossary import occurs, unhonoured


def test_a_term_is_a_word_of_its_own_in_any_case() -> None:
    assert occurs("file", "Open the File.")
    assert not occurs("file", "Open the profile.")
    assert not occurs("file", "Open the files.")


def test_scripts_without_spaces_need_no_edges() -> None:
    assert occurs("文件", "打开文件夹")


def test_accents_match_composed_or_not() -> None:
    assert occurs("e\u0301cran", "Un écran noir")


def test_a_term_beside_punctuation_is_found() -> None:
    assert occurs("C++", "Written in C++.")


def test_only_terms_of_the_source_are_asked_for() -> None:
    glossary = {"file": "fichier", "folder": "dossier", "key": "clé"}
    assert unhonoured(glossary, "Copy file and folder", "Copier les FICHIERS") == ["folder"]


def test_a_term_inside_a_placeholder_is_none() -> None:
    assert unhonoured({"file": "fichier"}, "Copy {file}", "Copier {file}") == []
