"""Words of a caption by the Penn Treebank rules of coco-caption (Chen et al. 2015, arXiv:1504.00325 §4), without Java.

coco-caption runs Stanford's tokenizer (CoreNLP 3.4.1, lower-casing, one caption a line) and drops 17 punctuation
tokens. The rules below give the same words; they were found by asking that program about some 150,000 sentences and
word forms. Its quirks are kept where captions can show them: brackets become "-lrb-", which the drop list, written
in capitals, misses; "hotdog., with" keeps "hotdog."; "Hawai'i" is one word. Known to differ are some smileys, rare
markup and telephone numbers. A caption's last "B." loses its dot here, as it does there when the next line of the
file begins with "A" or "The".
"""

from __future__ import annotations

import re

NBSP = "\u00a0"
"""Joins what the tokenizer sees as one token with a space in it ("2 1/2"); BLEU and CIDEr split there, ROUGE not."""

_DROPPED = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

_SPLIT_WORDS = {"cannot": 3, "gonna": 3, "gotta": 3, "gimme": 3, "lemme": 3, "wanna": 3, "'tis": 2, "'twas": 2}
_SPLIT_WORDS["more'n"] = 4
"""Words written together, and the length of their first part."""

_ABBREVIATIONS_ANY_CASE = """
    adj adm adv alex assoc asst ave capt cf cie cmdr col cpl dept det dr drs ens ft gen gov hon insp jos lt maj messrs
    mme mr mrs ms msgr mt natl pfc ph pres prof pvt rep rev sen sfc sgt spc st ste supt vs wm
    al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla
    fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd rt
    sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo mfg mtg pte pty
"""
_ABBREVIATIONS_CAPITALISED = "ark az del ill la mass miss ore pa tex wash"
_ABBREVIATIONS_BEFORE_NUMBER = "art ca fig figs no nos op pp prop"
_ABBREVIATIONS = frozenset(f"{_ABBREVIATIONS_ANY_CASE} {_ABBREVIATIONS_CAPITALISED}".split())
_OPENERS = """
    a about according after an as at but earlier he her here however if in it last many more now once one other our
    she since so some such that the their then there these they this we what when while yet you
"""
"""Words that, with a capital, show that the letter and dot before them ended a sentence."""


def _any_case(words: str) -> str:
    return "(?i:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


def _capitals(words: str) -> str:
    forms = {form for word in words.split() for form in (word.capitalize(), word.upper())}
    return "(?:" + "|".join(sorted(forms, key=len, reverse=True)) + ")"


_L = r"[^\W\d_]"  # a letter of any script
_W = "[^\\W_\u00b2\u00b3\u00b9\u00bc\u00bd\u00be]"  # a letter or digit
_Q = "(?:['\u2019]|&apos;)"  # an apostrophe
_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+\."
_DOTTED = rf"{_L}{_W}*(?:\.{_L}{_W}*)+"
_ELIDED = rf"(?i:[dol]){_Q}(?={_L})"  # d'Artagnan, O'Brien
_LAST = rf"(?:{_ACRONYM}(?!\w)|[dDlLoO]{_Q}{_L}{{2,}}|{_W}+)"
_URL_BODY = r"[^\s\"<>|()]*[^\s\"<>|().!?,;:'{}\[\]-]"
_SPACE = r"[ \u00a0]"

# First match wins, so a longer form stands before a shorter one. A rule is a name and its alternatives; the name says
# how `_normal` writes the token.
_RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "tag",
        (
            r"</?[A-Za-z][\w.:-]*(?:\s+[\w.-]+(?:\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s<>\"']+))?)*\s*/?>",
            r"<[!?][A-Za-z-][^<>]*>",
        ),
    ),
    ("url", (rf"(?i:https?://{_URL_BODY})", rf"(?i:(?:www\.)?(?:[\w-]+\.)+(?:com|net|org|edu)/{_URL_BODY})")),
    ("email", (r"[A-Za-z0-9][\w.%+-]*@(?:[\w-]+\.)*[\w-]*\w",)),
    ("handle", (r"@[A-Za-z_]\w*", r"\#[^\W\d_]+")),
    (
        "phone",
        (
            rf"\d{{2,4}}(?:-|{_SPACE})\d{{3,4}}(?:-|{_SPACE})\d{{4}}(?!\d)",
            rf"\(\d{{3}}\){_SPACE}?\d{{3}}(?:-|{_SPACE})\d{{4}}(?!\d)",
        ),
    ),
    ("mixed", (rf"(?<!\d)\d{{1,4}}{_SPACE}\d{{1,2}}/\d{{1,4}}(?![\w/])",)),
    ("slash", (rf"{_W}+(?:-{_W}+)*/{_W}+(?:-{_W}+)*(?:/{_W}+)?",)),
    ("hyphen", (rf"(?:{_ELIDED})?{_W}(?:{_W}|[.,])*(?:-{_LAST})+(?:\.(?=[,;:]))?", rf"{_W}+(?:_{_W}+)+")),
    ("sharp", (r"[cC]\+\+", r"[cCfF]\#")),
    (
        "assimilation",
        (r"(?i:cannot|gonna|gotta|gimme|lemme|wanna)(?!\w)", rf"(?i:more{_Q}n)(?!\w)", r"(?i:'t(?:is|was))"),
    ),
    ("acronym", (rf"{_ACRONYM}(?![^\W_])",)),
    ("kept", (rf"{_W}*{_L}{_W}*\.(?=[,;:])", r"\d+\.(?=[,;:])")),
    (
        "abbreviation",
        (
            rf"(?:{_any_case(_ABBREVIATIONS_ANY_CASE)}|{_capitals(_ABBREVIATIONS_CAPITALISED)}|(?i:ph\.d))\.(?!{_L})",
            rf"[A-Za-z]\.(?!\s*$|\s+{_capitals(_OPENERS)}\s)(?!{_L})",
            rf"{_any_case(_ABBREVIATIONS_BEFORE_NUMBER)}\.(?=\s*\d)",
            r"(?i:ph\.d)\.(?=s\b)",
        ),
    ),
    (
        "whole",
        (
            rf"{_L}+[aeiouyAEIOUY]{_Q}[aeiouAEIOU]{_L}*",
            rf"(?i:c{_Q}mon|o{_Q}clock\w*|ma{_Q}am\w*|d{_Q}ye|ne{_Q}er\w*|o{_Q}er\w*)",
            r"(?i:'(?:em|cause|till?)|'n'|n'(?=roll))",
            r"['\u2019]\d\ds(?!\w)",
            r"'\d\d(?![\w-])",
        ),
    ),
    (
        "elided",
        (
            rf"[A-HJ-XZdlon]{_Q}{_W}{{2,}}",
            rf"(?i:ol|dunkin){_Q}",
            rf"[dDlLjJyY]{_Q}(?={_L})",
            rf"[dDlLjJ]{_Q}",
        ),
    ),
    ("company", (r"[A-Z]+(?:&(?:amp;)?[A-Z]+)+",)),
    ("quotes", (r"''|``",)),
    ("negated", (rf"{_L}*[^\W\d_nN](?=[nN](?:{_Q}|`)[tT])", rf"[nN](?:{_Q}|`)[tT]\w*")),
    ("contraction", (rf"{_Q}(?i:s|d|m|re|ve|ll)(?![^\W_])",)),
    ("dotted", (rf"{_DOTTED}(?:(?<=\w)-{_W}+)*", rf"{_L}+(?:[.?!]{_L}+)+")),
    ("anti", (r"(?i:anti)-",)),
    ("money", (r"(?:US|A|C|HK|AU|CA|NZ|S|R)\$",)),
    ("thing", (rf"{_W}*{_L}{_W}*",)),
    ("number", (r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)",)),
    ("smiley", (r"[:;=]-?['o]?[()D\]\[{|@P](?!\w)", r"\^_\^")),
    ("dots", (r"\.\.\.+|\. \. \.|\u2026",)),
    ("rule", (r"-{5,}",)),
    ("dash", (r"--+|[\u2013\u2014\u2015]",)),
    ("run", (r"[?!]+|<<|>>|_+|\#+|\*+|@+|-",)),
    ("entity", (r"&(?:amp|lt|gt|quot|nbsp|apos|mdash|ndash);", r"&\#\d+;")),
    ("other", (r"\S",)),
)
_LEXER = re.compile("|".join(f"(?P<{name}>{'|'.join(forms)})" for name, forms in _RULES))

_RENAMED = {
    "(": "-lrb-",
    ")": "-rrb-",
    "[": "-lsb-",
    "]": "-rsb-",
    "{": "-lcb-",
    "}": "-rcb-",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
    "&quot;": "''",
    "&nbsp;": "",
    "&apos;": "'",
    "&mdash;": "--",
    "&ndash;": "--",
    "\u2013": "--",
    "\u2014": "--",
    "\u2015": "--",
    "\u2026": "...",
    "\u00a2": "cents",
    "\u00a3": "#",
    "\u20ac": "$",
    "\u00a4": "$",
    "\u00bd": "1/2",
    "\u00bc": "1/4",
    "\u00be": "3/4",
    **dict.fromkeys(['"', "\u201c", "\u201d", "\u00ab", "\u00bb"], "''"),
    **dict.fromkeys(["\u2018", "\u2019"], "'"),
}

# Nine captions of ten are of this form, for which the whole lexer comes down to `split`.
_PLAIN = re.compile(r"(?:[a-z]+(?:-[a-z]+)*,? +)*[a-z]+(?:-[a-z]+)*(?: *\.)? *")


def tokenize(caption: str) -> list[str]:
    """The words of one caption, lower-cased, without the dropped punctuation."""
    text = caption.lower()
    if _PLAIN.fullmatch(text):
        words = text.replace(",", "").split()
        if words[-1] == ".":
            words.pop()
        last = words[-1]
        if last[-1] == "." and len(last) > 2 and last[:-1] not in _ABBREVIATIONS:
            words[-1] = last = last[:-1]
        if last[-1] != "." and _SPLIT_WORDS.keys().isdisjoint(words):
            return words
    return _scan(caption)


def _scan(caption: str) -> list[str]:
    text = caption.replace("\u00ad", "").replace("\n", " ").replace("\r", " ")
    tokens: list[str] = []
    for match in _LEXER.finditer(text):
        tokens.extend(_normal(match.lastgroup or "", match.group()))
    return [token for token in tokens if token and token not in _DROPPED]


def _normal(rule: str, found: str) -> list[str]:
    """The tokens of one match, as the original writes them."""
    token = found.lower()
    match rule:
        case "assimilation":
            token = token.replace("\u2019", "'").replace("&apos;", "'")
            cut = _SPLIT_WORDS[token]
            return [token[:cut], token[cut:]]
        case "contraction" | "negated":
            return [token.replace("\u2019", "'").replace("&apos;", "'")]
        case "smiley" | "phone":
            return [token.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", NBSP)]
        case "tag" | "mixed":
            return [re.sub(r"\s", NBSP, token)]
        case "company":
            return [token.replace("&amp;", "&")]
        case "dots":
            return ["..."]
        case "dash":
            return ["--"]
        case "other" if _is_untokenizable(token):
            return []
        case _:
            return [_RENAMED.get(token, token)]


def _is_untokenizable(char: str) -> bool:
    """What the original deletes with a warning: pictographs, zero-width and control characters."""
    code = ord(char)
    return code > 0xFFFF or 0x200B <= code <= 0x200F or code in (0xFFFD, 0xFEFF, 0x20B9) or code < 0x20
