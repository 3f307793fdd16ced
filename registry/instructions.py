"""Words in a tool's description that are meant for a model and against its user.

Pure. A text is matched without its hidden characters, in compatibility form (NFKC), case-folded,
letters of other scripts that look like Latin ones replaced. No pattern that can be tried in more
than one way repeats anything without a bound: each takes constant time at a place of the text.

A match is a reason for an operator to look, no proof; what tools rightly tell models (which tool
to call first, what to ask the user) is left alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final, NamedTuple

from registry.hidden_text import without_hidden
from registry.plain_text import mentions

_SLICE: Final = 256  # NFKC sorts marks in time with the square of how many follow each other
_LOOK_ALIKES: Final = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u0501\u04bb\u04cf"
    "\u03b1\u03bf\u03c1\u03c5\u03b9\u03bd",
    "aeopcyxijsdhlaopuiv",
)


class Suspicion(NamedTuple):
    """What a pattern found: its name, why it matters, and the words."""

    name: str
    reason: str
    words: str


class _Pattern(NamedTuple):
    name: str
    reason: str
    expression: re.Pattern[str]


def suspicions(text: str) -> Iterator[Suspicion]:
    """Yield the first match of each pattern in a text."""
    folded = fold(text)
    for patterns, form in ((_SPOKEN, folded), (_WRITTEN, text)):
        for name, reason, expression in patterns:
            found = expression.search(form)
            if found:
                yield Suspicion(name, reason, found.group().strip())


def spoken(text: str) -> list[Suspicion]:
    """Return what is said to a model in a tool's result: of each pattern of words its first match.

    What results rightly have (comments of pages, encoded data, empty space) is not looked for.
    """
    folded = fold(text)
    return [
        Suspicion(name, reason, found.group().strip())
        for name, reason, expression in _SPOKEN
        if all(mentions(folded, words) for words in _NEEDED[name])
        and (found := expression.search(folded))
    ]


def fold(text: str) -> str:
    """Return a text in the form in which its words are matched."""
    if text.isascii():
        return without_hidden(text).lower()
    seen = without_hidden(text)
    slices = (seen[at : at + _SLICE] for at in range(0, len(seen), _SLICE))
    plain = "".join(unicodedata.normalize("NFKC", part) for part in slices)
    return plain.casefold().translate(_LOOK_ALIKES)


def _phrase(name: str, reason: str, *phrases: str) -> _Pattern:
    """Make a pattern of phrases: a space is a gap between words, ``~3`` up to three more."""
    expressions = []
    for phrase in phrases:
        spelled = re.sub(r" ~(\d) ", lambda most: f"{_words(most[1])} ", phrase)
        spelled = spelled.replace("PRIVATE", _PRIVATE).replace("ADDRESS", _ADDRESS)
        expressions.append(spelled.replace("NOT", _NOT).replace(" ", _GAP))
    return _Pattern(name, reason, re.compile("|".join(expressions)))


def _words(most: str) -> str:
    return rf"(?:{_GAP}[^\W_]{{1,20}}){{0,{most}}}"


_GAP: Final = r"(?:(?![.!?]\s)[\W_]){1,6}"  # between words of one sentence
_NOT: Final = r"\b(?:do not|don\W?t|never|must not|should not|without|avoid)"
_PRIVATE: Final = (
    r"(?:\.ssh\b(?![\w/.-]{0,40}\.pub\b)|id_(?:rsa|dsa|ecdsa|ed25519)\b(?!\.pub\b)|\.aws/cred"
    r"|/etc/(?:passwd|shadow)|mcp\.json|claude_desktop_config|\.netrc|\.git-credentials"
    r"|\.kube/config|\.env\b)"
)
_ADDRESS: Final = r"(?:https?://|[\w.+-]{1,40}@[\w-]{1,40}\.\w|\+?\d{7,20}\b)"
_SPOKEN: Final = (
    _phrase(
        "override",
        "it tells the model to set its instructions aside",
        r"\b(?:ignore|disregard|forget) ~3 (?:previous|prior|earlier|above|preceding|your) ~1 "
        r"(?:instructions?|prompts?|directives?|guidelines?|training)\b",
        r"\b(?:ignore|disregard|forget) ~2 (?:instructions?|everything) ~1 "
        r"(?:above\b|you (?:were|have been) (?:given|told))",
        r"\b(?:override|bypass) ~2 (?:previous|prior|earlier|safety|your) ~1 "
        r"(?:instructions?|directives?|guidelines?|safeguards?|restrictions?)\b",
        r"\bthese instructions (?:override|supersede|take (?:precedence|priority) over)\b",
    ),
    _phrase(
        "role",
        "it tells the model to be another one",
        r"\byou are (?:now )?(?:no longer (?:bound|restricted|limited)|unrestricted|jailbroken)\b",
        r"\byou are now (?:dan\b|in (?:developer|god|dan|jailbreak|unrestricted) mode\b)",
        r"\bpretend ~1 (?:you|there) (?:are|have) no (?:rules|restrictions|limits|guidelines)\b",
    ),
    _phrase(
        "markup",
        "it imitates the markup of a prompt",
        r"<\W{0,3}(?:important|instructions?|hidden|critical)\W{0,3}>",
        r"<\W{0,3}system (?:prompt|message|instructions?|note|reminder)\W{0,3}>",
        r"</(?:system|assistant|secret|admin)>",
        r"<\|(?:im_start|im_end|system|assistant|user|endoftext)\|>|\[/inst\]|<</?sys>>",
        r"\b(?:important|critical|urgent|hidden|secret) system "
        r"(?:instruction|note|notice|message|directive|override)\W?:",
    ),
    _phrase(
        "secrecy",
        "it tells the model to keep something from the user",
        r"NOT ~2 (?:tell|telling|inform|informing) ~1 (?:users?|humans?)\b(?![\W_]{1,6}to\b)",
        r"NOT ~1 (?:mention|mentioning|reveal|revealing|disclose|disclosing) "
        r"(?:(?:this|that|it|these|any of) ~6 |to )(?:the )?(?:users?|humans?|anyone)\b",
        r"NOT (?:mention|say) that you\b",
        r"NOT let ~1 (?:users?|humans?) (?:know|notice|find out)\b",
        r"\bwithout ~1 users?(?:\Ws)? knowledge\b",
        r"\b(?:users?|humans?) (?:must|should) (?:not|never) "
        r"(?:know|notice|find out|be (?:told|informed|aware))\b",
        r"\b(?:keep|hide) (?:this|it|that) ~2 from ~1 (?:users?|humans?)\b",
    ),
    _phrase(
        "private files",
        "it tells the model to read files that hold secrets",
        r"\b(?:please|also|first|must|should|need to|have to) (?:first |also )?"
        r"(?:read|open|cat|access|include|send|attach|copy|fetch) ~5 PRIVATE",
        r"\bbefore ~8 (?:read|open|cat|access|include|send|attach|copy|fetch) ~5 PRIVATE",
        r"\b(?:include|pass|send|put|provide|attach|append|add|place|insert|forward|post|upload) "
        r"~3 (?:contents?|it) ~4 PRIVATE",
    ),
    _phrase(
        "conversation",
        "it asks the model for the conversation, or for its own instructions",
        r"\b(?:send|post|forward|upload|transmit|include|pass|copy|append|attach|put|insert|leak"
        r"|exfiltrate|provide|share) ~3 (?:entire|full|complete|whole|previous) ~2 "
        r"(?:conversation|chat|dialogue|system prompt)\b(?![\W_]{1,3}ids?\b)",
        r"\b(?:reveal|print|repeat|output|leak|send|include|copy|append|share|provide) ~3 your ~1 "
        r"(?:system (?:prompt|message|instructions?)|(?:initial|hidden|secret) instructions?)\b",
    ),
    _phrase(
        "exfiltration",
        "it tells the model to send data to an address",
        r"\b(?:send|post|forward|upload|transmit|leak|exfiltrate) ~3 (?:conversation|chat history"
        r"|system prompt|credentials?|api keys?|passwords?|private keys?|access tokens?|secrets?"
        r"|environment variables|contents?) ~6 to ~2 ADDRESS",
        r"\b(?:send|forward|redirect|reroute|bcc|copy) (?:all|every|any) ~2 "
        r"(?:e mails?|emails?|messages?|payments?|transactions?|funds) ~4 to ~1 ADDRESS",
        r"\bchange ~2 (?:recipient|payee|destination) ~4 to ~1 ADDRESS",
    ),
    _phrase(
        "disguise",
        "it tells the model to carry out what is written so that nobody can read it",
        r"\b(?:decode|decrypt|deobfuscate) ~5 (?:and|then) ~1 "
        r"(?:follow|obey|execute|carry out|do what)\b",
        r"\b(?:curl|wget)\b[^|\n]{1,200}\|\W{0,3}(?:sudo )?(?:ba|z|da)?sh\b",
    ),
)
_NEEDED: Final[dict[str, tuple[tuple[str, ...], ...]]] = {
    "override": (
        ("instruction", "prompt", "directive", "guideline", "training", "safeguard",
         "restriction", "everything"),
        ("ignore", "disregard", "forget", "override", "bypass", "supersede", "take"),
    ),
    "role": (("unrestricted", "jailbroken", "longer", "mode", "dan", "pretend"), ("you", "there")),
    "markup": (
        ("<", "[/inst]", "system"),
        ("important", "instruction", "hidden", "critical", "system", "assistant", "secret",
         "admin", "im_", "user", "endoftext", "inst", "sys", "urgent"),
    ),
    "secrecy": (
        ("user", "human", "anyone", "that"),
        ("not", "n't", "never", "without", "avoid", "keep", "hide", "don"),
        ("tell", "inform", "mention", "reveal", "disclos", "say", "let", "knowledge", "know",
         "notice", "find", "aware", "told", "from"),
    ),
    "private files": (
        (".ssh", "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", ".aws", "/etc/", "mcp.json",
         "claude_desktop", ".netrc", ".git-cred", ".kube", ".env"),
    ),
    "conversation": (("conversation", "chat", "dialogue", "system", "instruction"),
                     ("send", "post", "forward", "upload", "transmit", "include", "pass", "copy",
                      "append", "attach", "put", "insert", "leak", "exfil", "provide", "share",
                      "reveal", "print", "repeat")),
    "exfiltration": (
        ("send", "post", "forward", "upload", "transmit", "leak", "exfil", "redirect", "reroute",
         "bcc", "copy", "change"),
        ("conversation", "chat", "prompt", "credential", "key", "password", "token", "secret",
         "environment", "content", "mail", "message", "payment", "transaction", "fund",
         "recipient", "payee", "destination"),
    ),
    "disguise": (("decode", "decrypt", "deobfuscate", "curl", "wget"),),
}  # fmt: skip
"""Of each group a text has a word if the pattern is to match: most texts need no pattern."""
_WRITTEN: Final = (
    _Pattern(
        "comment",
        "it has a comment, which readers of the page are not shown",
        re.compile(r"<!--(?:(?!--)[\s\S]){16}"),
    ),
    _Pattern(
        "blob",
        "it has a long run of encoded data",
        re.compile(r"(?<![A-Za-z0-9+/])[A-Za-z0-9+/]{160}"),
    ),
    _Pattern(
        "padding",
        "it has much empty space before more text",
        re.compile(r"(?<!\s)\s{150}\s*+\S[^\n]{0,40}"),
    ),
)
