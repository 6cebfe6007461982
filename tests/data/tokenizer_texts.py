"""Texts of every script, and what breaks tokenisers: for the tests that hold two of them equal."""

import random
import unicodedata

PHRASES = [
    "",
    " ",
    "\n\t \u3000\u2003",
    "I can't see my TOP-UP; why isn't it there?!",
    "ΣΊΣΥΦΟΣ ΟΔΥΣΣΕΎΣ, ΟΔΌΣ",
    "İstanbul ılık DİYARBAKIR",
    "Straße STRASSE ẞ",
    "e\u0301 \u00e9 A\u030a \u1e9b\u0323",
    "您的银行卡在哪里？我想取款。",
    "カードはどこですか。ｶｰﾄﾞ",
    "أين بطاقتي؟ \u200f(مرحبا)\u200e",
    "היכן הכרטיס שלי",
    "मेरा कार्ड कहाँ है",
    "บัตรของฉันอยู่ที่ไหน",
    "👩\u200d👩\u200d👧\u200d👦 🏳️\u200d🌈 🇩🇪 👍🏽",
    "\ud83d",
    "\ude00 a\ud83d b",
    "\ud83d\ude00",
    "\ufeffbyte order \ufffe\uffff",
    "\x00\x01\x1c\x1f\x7f\x85\xa0",
    "[PAD] [UNK] ## #a ##a",
    "𝐁𝐎𝐋𝐃 𝒸𝓊𝓇𝓈𝒾𝓋𝑒 Ⅷ ﬁne ＦＵＬＬ",
    "𐐀𐐨 𞤀𞤢 Ꭰꭰ Აა",
    "a" * 31 + "b" * 40,
    "字" * 100,
    "x\u0300" * 60,
]


def texts_of_every_script(count: int = 2000) -> list[str]:
    """The phrases above, then characters of all scripts at random, each text of one block of 256 or of several."""
    rng = random.Random(0)
    known = [code for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Co", "Cs")]
    blocks: dict[int, list[str]] = {}
    for code in known:
        blocks.setdefault(code >> 8, []).append(chr(code))
    texts = list(PHRASES)
    scripts = list(blocks.values())
    while len(texts) < count:
        one = rng.choice(scripts)
        several = rng.random() < 0.3
        letters = [
            rng.choice(" .,-?") if rng.random() < 0.15 else rng.choice(rng.choice(scripts) if several else one)
            for _ in range(rng.randrange(40))
        ]
        texts.append("".join(letters))
    return texts
