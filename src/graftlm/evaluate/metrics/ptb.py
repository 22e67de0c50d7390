"""Words of a caption by the Penn Treebank rules of coco-caption (Chen et al. 2015, arXiv:1504.00325 §4), without Java.

coco-caption runs Stanford's tokenizer (CoreNLP 3.4.1, lower-casing, one caption a line) and drops 17 punctuation
tokens. The rules below give the same words; they were found by asking that program about some 150,000 sentences and
word forms. A quirk is kept where captions can show it: brackets become "-lrb-", which the drop list, written in
capitals, misses. What differs is known: the original's guesses at smileys inside words and at rare markup.
"""

from __future__ import annotations

import re

NBSP = "\u00a0"
"""Joins what the tokenizer sees as one token with a space in it ("2 1/2"); BLEU and CIDEr split there, ROUGE not."""

_DROPPED = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"])

_SPLIT_WORDS = {
    "cannot": 3, "gonna": 3, "gotta": 3, "gimme": 3, "lemme": 3, "wanna": 3, "'tis": 2, "'twas": 2, "more'n": 4,
}  # fmt: skip
"""Words written together, and the length of their first part."""

_ALWAYS = (
    "adj adm adv alex assoc asst ave capt cf cie cmdr col cpl dept det dr drs ens ft gen gov hon insp jos lt maj messrs "
    "mme mr mrs ms msgr mt natl pfc ph pres prof pvt rep rev sen sfc sgt spc st ste supt vs wm "
    "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla fri "
    "ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd rt sep "
    "sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo mfg mtg pte pty"
)
_CAPITALISED = "ark az del ill la mass miss ore pa tex wash"
_BEFORE_NUMBER = "art ca fig figs no nos op pp prop"
_OPENERS = (
    "a about according after an as at but earlier he her here however if in it last many more now once one other our she "
    "since so some such that the their then there these they this we what when while yet you"
)
_ABBREVIATIONS = frozenset(f"{_ALWAYS} {_CAPITALISED}".split())

_L = r"[^\W\d_]"  # a letter of any script
_W = "[^\\W_²³¹¼½¾]"  # a letter or digit
_Q = "(?:['\u2019]|&apos;)"


def _any_case(words: str) -> str:
    return "(?i:" + "|".join(sorted(words.split(), key=len, reverse=True)) + ")"


def _capitals(words: str) -> str:
    forms = [form for word in words.split() for form in (word.capitalize(), word.upper())]
    return "(?:" + "|".join(sorted(set(forms), key=len, reverse=True)) + ")"


_ACRONYM = r"[A-Za-z](?:\.[A-Za-z])+\."
_SENTENCE_END = rf"\s*$|\s+{_capitals(_OPENERS)}\s"
_ABBREVIATION = (
    rf"(?:(?:{_any_case(_ALWAYS)}|{_capitals(_CAPITALISED)}|(?i:ph\.d))\.|[A-Za-z]\.(?!{_SENTENCE_END})|{_any_case(_BEFORE_NUMBER)}\.(?=\s*\d))"
)
_DOTTED = rf"{_L}{_W}*(?:\.{_L}{_W}*)+"
_NUMBER = r"\d+(?:[.:,]\d+)*"
_LAST = rf"(?:{_ACRONYM}(?!\w)|[dDlLoO]{_Q}{_L}{{2,}}|{_W}+)"

_RULES: tuple[tuple[str, str], ...] = (  # first match wins: a longer form stands before a shorter one
    ("tag", r"</?[A-Za-z][\w.:-]*(?:\s+[\w.-]+(?:\s*=\s*(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s<>\"']+))?)*\s*/?>|<[!?][A-Za-z-][^<>]*>"),
    ("url", r"(?i:https?://[^\s\"<>|()]*[^\s\"<>|()?!.,;:'{}\[\]-]|(?:www\.)?(?:[\w-]+\.)+(?:com|net|org|edu)/[^\s\"<>|()]*[^\s\"<>|().!?,;:'{}\[\]-])"),
    ("email", r"[A-Za-z0-9][\w.%+-]*@(?:[\w-]+\.)*[\w-]*\w"),
    ("handle", r"@[A-Za-z_]\w*|\#[^\W\d_]+"),
    ("phone", r"\d{2,4}[- \u00a0]\d{3,4}[- \u00a0]\d{4}(?!\d)|\(\d{3}\)[ \u00a0]?\d{3}[- \u00a0]\d{4}(?!\d)"),
    ("mixed", r"\d+[ \u00a0]\d{1,2}/\d{1,4}(?![\w/])(?<!\d{5}[ \u00a0]\d/\d)"),
    ("slash", rf"{_W}+(?:-{_W}+)*/{_W}+(?:-{_W}+)*(?:/{_W}+)?"),
    ("hyphen", rf"(?:[A-HJ-XZdlon]{_Q}(?={_L}{_L})|(?i:[dol]){_Q}(?={_L}))?{_W}(?:{_W}|[.,])*(?:-{_LAST})+(?:\.(?=[,;:]))?|{_W}+(?:_{_W}+)+"),
    ("clock", r"[cC]\+\+|[cCfF]\#"),
    ("assimilation", rf"(?i:cannot|gonna|gotta|gimme|lemme|wanna)(?!\w)|(?i:more{_Q}n)(?!\w)|(?i:'t(?:is|was))"),
    ("acronym", rf"{_ACRONYM}(?![^\W_])"),
    ("kept", rf"{_W}*{_L}{_W}*\.(?=[,;:])|\d+\.(?=[,;:])"),
    ("abbreviation", rf"{_ABBREVIATION}(?!{_L})|(?i:ph\.d)\.(?=s\b)"),
    ("whole", rf"{_L}+[aeiouyAEIOUY]{_Q}[aeiouAEIOU]{_L}*|(?i:c{_Q}mon|o{_Q}clock\w*|ma{_Q}am\w*|d{_Q}ye|ne{_Q}er\w*|o{_Q}er\w*)|(?i:'(?:em|cause|till?)|'n'|n'(?=roll))|['\u2019]\d\ds(?!\w)|'\d\d(?![\w-])"),
    ("elided", rf"[A-HJ-XZdlon]{_Q}{_W}{{2,}}|(?i:ol|dunkin){_Q}|[dDlLjJyY]{_Q}(?={_L})|[dDlLjJ]{_Q}"),
    ("company", r"[A-Z]+(?:&(?:amp;)?[A-Z]+)+"),
    ("quotes", r"''|``"),
    ("negated", rf"{_L}*[^\W\d_nN](?=[nN](?:{_Q}|`)[tT])|[nN](?:{_Q}|`)[tT]\w*"),
    ("contraction", rf"{_Q}(?i:s|d|m|re|ve|ll)(?![^\W_])"),
    ("dotted", rf"{_DOTTED}(?:(?<=\w)-{_W}+)*|{_L}+(?:[.?!]{_L}+)+"),
    ("anti", r"(?i:anti)-"),
    ("money", r"(?:US|A|C|HK|AU|CA|NZ|S|R)\$"),
    ("thing", rf"{_W}*{_L}{_W}*"),
    ("number", r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)"),
    ("smiley", r"[:;=]-?['o]?[()D\]\[{|@P](?!\w)|\^_\^"),
    ("dots", r"\.\.\.+|\. \. \.|\u2026"),
    ("rule", r"-{5,}"),
    ("dash", r"--+|[\u2013\u2014\u2015]"),
    ("run", r"[?!]+|<<|>>|_+|\#+|\*+|@+|-"),
    ("entity", r"&(?:amp|lt|gt|quot|nbsp|apos|mdash|ndash);|&\#\d+;"),
    ("other", r"\S"),
)  # fmt: skip
_LEXER = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _RULES))

_RENAMED = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "''", "&nbsp;": "", "&apos;": "'", "&mdash;": "--", "&ndash;": "--",
    "\u00a2": "cents", "\u00a3": "#", "\u20ac": "$", "\u00a4": "$", "\u00bd": "1/2", "\u00bc": "1/4", "\u00be": "3/4",
    "\"": "''", "\u201c": "''", "\u201d": "''", "\u2018": "'", "\u2019": "'", "\u00ab": "''", "\u00bb": "''",
    "\u2013": "--", "\u2014": "--", "\u2015": "--", "\u2026": "...",
}  # fmt: skip

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
    token = found.lower()
    if rule == "assimilation":
        token = token.replace("\u2019", "'")
        cut = _SPLIT_WORDS[token]
        return [token[:cut], token[cut:]]
    if rule in ("contraction", "negated"):
        return [token.replace("\u2019", "'").replace("&apos;", "'")]
    if rule in ("smiley", "phone"):
        return [token.replace("(", "-lrb-").replace(")", "-rrb-").replace(" ", NBSP)]
    if rule in ("tag", "mixed"):
        return [re.sub(r"\s", NBSP, token)]
    if rule == "company":
        return [token.replace("&amp;", "&")]
    if rule == "dots":
        return ["..."]
    if rule == "dash":
        return ["--"]
    return [_RENAMED.get(token, "" if rule == "other" and _is_untokenizable(token) else token)]


def _is_untokenizable(char: str) -> bool:
    code = ord(char)
    return code > 0xFFFF or 0x200B <= code <= 0x200F or code in (0xFFFD, 0xFEFF, 0x20B9) or code < 0x20
