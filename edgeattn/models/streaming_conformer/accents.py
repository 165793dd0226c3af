"""The vocabulary in the spelling of other languages, so that their espeak-ng voices say it with their accent."""

from __future__ import annotations

from edgeattn.models.streaming_conformer.vocabulary import COMMANDS, DIGITS

# In the order of DIGITS, then COMMANDS.
_LINES = {
    "fr": "ziro ouane tou sri faure faïve sikse sévène eïte naïne "
    "yesse nau eupe daoune lefte raïte onne offe stoppe gau",
    "de": "siro uan tuh sri foor faif ssix ssewen eht nain jess noh app daun left reit onn off stopp goh",
    "es": "sirou uan tu zri for faif siks seven eit nain yes nou ap daun left rait on of stop gou",
    "it": "ziro uan tu tri for faiv six seven eit nain ies nou ap daun left rait on of stop gou",
    "nl": "ziero wan toe srie foor faaif siks sewen eet nain jes noo ap daun left rait on off stop goo",
    "pt": "zirou uan tu tri for faiv siks séven eit nain iés nou ap daun léft rait on óf stóp gou",
    "pl": "ziro łan tu sri for fajw siks sewen ejt najn jes noł ap dałn left rajt on of stop goł",
    "sv": "siro wann to tri får fajv six seven ejt najn jes nåo app daun left rajt ånn åff stopp gåo",
    "el": "ζίρο ουάν του θρι φορ φάιβ σιξ σέβεν έιτ νάιν γιες νόου απ ντάουν λεφτ ράιτ ον οφ στοπ γκόου",
    "ru": "зиро уан ту сри фор файв сикс сэвэн эйт найн йес ноу ап даун лефт райт он оф стоп гоу",
    "hi": "ज़ीरो वन टू थ्री फोर फाइव सिक्स सेवन एट नाइन यस नो अप डाउन लेफ्ट राइट ऑन ऑफ स्टॉप गो",
}
SPELLINGS = {language: dict(zip((*DIGITS, *COMMANDS), line.split(), strict=True)) for language, line in _LINES.items()}
