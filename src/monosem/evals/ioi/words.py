"""Names, places and objects of the prompts: our own lists; the tokenizer decides which are used. No torch."""

from __future__ import annotations

_FEMALE = (
    "Mary Anna Emma Alice Sarah Laura Julia Jane Lisa Linda Susan Karen Nancy Emily Helen Rachel Maria Kate Ruth "
    "Amy Lucy Rose Grace Claire Diana Elizabeth Jessica Jennifer Michelle Melissa Amanda Rebecca Martha Margaret "
    "Barbara Patricia Catherine Caroline Charlotte Victoria Sophie Sophia Olivia Hannah Eva Eve Ann Anne Angela "
    "Christina Christine Nicole Stephanie Samantha Katherine Kelly Heather Kim Carol Judy Judith Joan Jean Joyce "
    "Betty Dorothy Florence Ellen Eleanor Marie Irene Alexandra Andrea Monica Natalie Vanessa Wendy Tina Tracy "
    "Sally Sandra Sharon Molly Megan Lauren Leah Jasmine Isabella Ivy Chloe Ella Lily Zoe Ruby Stella Clara Cynthia "
    "Deborah Donna Erin Allison Abigail Bonnie Beth Brenda Holly Kathy Kathleen Janet Julie Pamela Theresa Valerie "
    "Virginia Elena Nina Nora"
)
_MALE = (
    "John James Robert Michael William David Richard Charles Joseph Thomas Daniel Paul Mark Donald George Kenneth "
    "Steven Edward Brian Ronald Anthony Kevin Jason Matthew Gary Timothy Jose Larry Jeffrey Frank Scott Eric "
    "Stephen Andrew Raymond Gregory Joshua Jerry Dennis Walter Patrick Peter Harold Douglas Henry Carl Arthur Ryan "
    "Roger Joe Juan Jack Albert Jonathan Justin Terry Gerald Keith Samuel Willie Ralph Lawrence Nicholas Roy "
    "Benjamin Bruce Brandon Adam Harry Fred Wayne Billy Steve Louis Jeremy Aaron Randy Howard Eugene Carlos Russell "
    "Bobby Victor Martin Ernest Phillip Philip Todd Jesse Craig Alan Shawn Sean Clarence Chris Earl Jimmy Antonio "
    "Danny Bryan Tony Luis Mike Stanley Leonard Nathan Dale Manuel Rodney Curtis Norman Allen Marcus Vincent Oliver "
    "Simon Leo Max Luke Neil Oscar Hugh Ian Ivan Jacob Ethan Felix Edwin Dylan Alex Ben Bob Bill Jim Tom Tim Dan "
    "Sam Ted"
)
_PLACES = (
    "park school station museum library market hotel restaurant hospital office beach farm garden theater church "
    "house store shop bank zoo airport river lake cafe bar club gym mall factory prison castle palace village camp "
    "bridge harbor kitchen studio stadium court temple hall tower clinic bakery university college mountain forest "
    "island ranch cemetery monastery arena gallery cinema barn"
)
_OBJECTS = (
    "book ring drink letter ball bag box cup key pen map hat coat watch phone camera knife bottle basket candle "
    "flower ticket coin card necklace painting guitar umbrella toy cake apple sandwich snack bone computer "
    "newspaper magazine gift blanket pillow mirror lamp chair radio drum sword rope glass plate spoon pan brush "
    "doll kite wallet scarf jacket shirt towel stone shell hammer bell clock crown mask tool jar pot egg banana "
    "lemon note report folder file"
)
FEMALE, MALE, PLACES, OBJECTS = (words.split(" ") for words in (_FEMALE, _MALE, _PLACES, _OBJECTS))
GENDERS = {**dict.fromkeys(FEMALE, "female"), **dict.fromkeys(MALE, "male")}

TEMPLATES = (
    "Later that evening, {A} and {B} had a long and bitter quarrel at the {place}. In the end, {C} said to",
    "After work, {A} and {B} had a good time at the {place}. Then {C} gave a {object} to",
    "Last week, {A} and {B} were busy at the {place}. {C} handed a {object} to",
)
