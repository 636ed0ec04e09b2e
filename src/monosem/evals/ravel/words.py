"""The word lists and prompts of the default RAVEL data: own lists and own sentences, plain data. Imports nothing.

A prompt has one `%s` for the entity; those under an attribute end where its value is expected, in the manner of their
worked examples. No entity is ever an example. What the embedded model mostly gets wrong was left out of the lists.
"""

from __future__ import annotations

VERBS = """
accept achieve act add admit adopt agree allow announce appear apply argue arrive ask attack attend avoid bake become
begin believe belong bite blame blow boil borrow break bring build burn buy call carry catch celebrate change charge
choose claim clean climb close collect consider contain continue control cook copy count cover create cross cry dance
deal decide deliver demand deny describe design destroy develop discover discuss draw dream drink drive drop earn eat
employ encourage enjoy enter escape examine exist expand expect explain explore express fail fall feel fight fill
finish fix fly follow gain gather get grab grow guess happen hate hear hide hire hold hope hunt identify ignore
imagine improve include inform insist introduce invite join kick kill kiss knock laugh launch lead learn leave lend
lift listen live lock lose love manage marry measure meet melt mention miss mix move notice obtain occur offer order
own paint park pass pay perform pick plan point pour pray prepare present press prevent produce promise promote
protect prove provide publish pull push reach receive recognize record reduce reflect refuse reject relax release
remain remember remove repair replace reply report represent request require respond rest return reveal ring rise save
search seek seem sell serve shake share shoot shout show sink sit sleep smile speak spend stand start stay steal stick
stop study succeed suffer suggest supply support suppose surprise survive swim swing teach touch train travel treat
trust understand use visit wait wake warn wash waste watch wear win wish wonder worry
"""

NOUNS = {
    "animal": """
        bat bear beaver bee bull camel cat cheetah chicken cow coyote crab dolphin donkey duck elephant fox frog
        goat gorilla hamster hedgehog hen kangaroo kitten leopard lion lobster monkey panda parrot penguin pig
        pigeon pony puppy rabbit rat seal shark snail snake squirrel tiger turkey turtle walrus whale wolf worm
        zebra""",
    "food": """
        almond biscuit burrito casserole chip cucumber curry donut dumpling fritter hamburger muffin noodle nugget
        onion pancake peanut pepper pickle pie pizza potato salad sandwich sausage scone snack steak tart tomato
        tortilla waffle""",
    "tool": """
        axe blade calculator chainsaw chisel clamp compass drill eraser grinder hacksaw ladder lever microscope
        needle pen pencil pickaxe pulley rake razor ruler sander scalpel scraper screwdriver shovel spade spatula
        stapler telescope trowel wrench""",
    "vehicle": """
        bicycle bike boat buggy bus cart chariot coach convertible jeep locomotive lorry moped motorbike motorcycle
        scooter sedan sled snowmobile streetcar taxi tractor trailer train tricycle trolley wagon""",
}

CITIES = """
Abidjan|Accra|Addis Ababa|Adelaide|Aleppo|Alexandria|Algiers|Amsterdam|Ankara|Arequipa|Asunción|Athens|Atlanta
Auckland|Baghdad|Baltimore|Bandung|Bangkok|Barcelona|Beijing|Beirut|Belgrade|Benghazi|Berlin|Bilbao|Birmingham|Bogotá
Bologna|Bordeaux|Boston|Brasília|Brisbane|Bucharest|Budapest|Buenos Aires|Cairo|Cali|Canberra|Caracas|Casablanca
Chengdu|Chicago|Chongqing|Christchurch|Cleveland|Concepción|Copenhagen|Córdoba|Curitiba|Dallas|Damascus|Darwin|Detroit
Dhaka|Dresden|Dublin|Düsseldorf|Edinburgh|Fès|Florence|Frankfurt am Main|Fukuoka|Gdańsk|Genoa|Giza|Glasgow|Gold Coast
Guadalajara|Guangzhou|Guayaquil|Hamburg|Hangzhou|Harare|Havana|Hiroshima|Houston|Incheon|Istanbul|Jakarta|Jeddah
Karachi|Kathmandu|Kazan|Khartoum|Kobe|Kraków|Kumasi|Kyiv|Kyoto|La Paz|Lagos|Lahore|Lille|Lisbon|Liverpool|Ljubljana
London|Los Angeles|Madrid|Manaus|Manchester|Maputo|Maracaibo|Marrakesh|Marseille|Málaga|Mecca|Medellín|Melbourne
Mexico City|Milan|Milwaukee|Minneapolis|Mogadishu|Montevideo|Moscow|Munich|Nagoya|Nanjing|Nantes|Naples|New Orleans
New York City|Nice|Novosibirsk|Palermo|Paris|Perth|Philadelphia|Phnom Penh|Pittsburgh|Porto|Prague|Quito|Rabat|Recife
Rio de Janeiro|Riyadh|Rome|Rosario|Saint Petersburg|San Antonio|San Francisco|Santiago|Sapporo|São Paulo|Seattle|Seoul
Sevilla|Shanghai|Sheffield|Shenzhen|Stockholm|Stuttgart|Sydney|Taipei|Tallinn|Tehran|The Hague|Tijuana|Tokyo|Toulouse
Tripoli|Tunis|Turin|Utrecht|Valparaíso|Vienna|Vientiane|Vilnius|Warsaw|Wellington|Wuhan|Yangon|Yokohama|Zagreb
Zaragoza
"""

LANGUAGES = """
AR Spanish|AT German|AU English|BD Bengali|BO Spanish|BR Portuguese|CI French|CL Spanish|CN Chinese|CO Spanish
CU Spanish|CZ Czech|DE German|DK Danish|DZ Arabic|EC Spanish|EE Estonian|EG Arabic|ES Spanish|ET Amharic|FR French
GB English|GH English|GR Greek|HR Croatian|HU Hungarian|ID Indonesian|IE English|IQ Arabic|IR Persian|IT Italian
JP Japanese|KH Khmer|KR Korean|LA Lao|LB Arabic|LT Lithuanian|LY Arabic|MA Arabic|MM Burmese|MX Spanish|MZ Portuguese
NG English|NL Dutch|NP Nepali|NZ English|PE Spanish|PK Urdu|PL Polish|PT Portuguese|PY Spanish|RO Romanian|RS Serbian
RU Russian|SA Arabic|SD Arabic|SE Swedish|SI Slovenian|SO Somali|SY Arabic|TH Thai|TN Arabic|TR Turkish|TW Chinese
UA Ukrainian|US English|UY Spanish|VE Spanish|ZW English
"""

Prompts = dict[str, list[str]]  # split -> prompts

PROMPTS: dict[str, dict[str, Prompts]] = {
    "verb": {
        "Past Tense": {
            "train": [
                "write: wrote; send: sent; play: played; %s:",
                "Today I write, yesterday I wrote. Today I open, yesterday I opened. Today I %s, yesterday I",
                "(give, gave), (help, helped), (run, ran), (need, needed), (%s,",
                "to sing = sang\nto look = looked\nto go = went\nto %s =",
                "We will keep, as we kept before. We will talk, as we talked before. We will %s, as we",
            ],
            "val": [
                "go, went. help, helped. take, took. want, wanted. %s,",
                "verb | past\nwrite | wrote\njump | jumped\nknow | knew\nturn | turned\n%s |",
            ],
            "test": [
                "see -> saw\nlook -> looked\nfind -> found\nwalk -> walked\n%s ->",
                "If they work, they worked before. If they sing, they sang before. If they turn, they turned before. "
                "If they %s, they",
                "The past of take is took, the past of jump is jumped, the past of write is wrote, "
                "and the past of %s is",
            ],
        },
        "Singular": {
            "train": [
                "write: writes; send: sends; play: plays; %s:",
                "I write and she writes. I open and she opens. I %s and she",
                "(give, gives), (help, helps), (run, runs), (%s,",
                "to sing = sings\nto look = looks\nto go = goes\nto %s =",
                "If I must keep, then everyone keeps. If I must talk, then everyone talks. If I must %s, then everyone",
            ],
            "val": [
                "go, goes. help, helps. take, takes. %s,",
                "they | it\nwrite | writes\njump | jumps\n%s |",
            ],
            "test": [
                "we see -> he sees\nwe look -> he looks\nwe find -> he finds\nwe go -> he goes\nwe %s -> he",
                "Both sing, one sings. Both look, one looks. Both %s, one",
                "they sing = she sings; they look = she looks; they go = she goes; they %s = she",
            ],
        },
    },
    "city": {
        "Country": {
            "train": [
                "Lyon: France; Osaka: Japan; Lima: Peru; Dakar: Senegal; %s:",
                "Oslo is a city in the country of Norway. Hanoi is a city in the country of Vietnam. "
                "%s is a city in the country of",
                "(Leipzig, Germany), (Salvador, Brazil), (Osaka, Japan), (%s,",
                "The flag over Lima is the flag of Peru. The flag over Oslo is the flag of Norway. "
                "The flag over %s is the flag of",
                "city | country\nLyon | France\nBusan | South Korea\nDakar | Senegal\n%s |",
            ],
            "val": [
                "Rotterdam, Netherlands. Salvador, Brazil. Busan, South Korea. Leeds, England. %s,",
                "People in Oslo live in Norway. People in Hanoi live in Vietnam. People in Lima live in Peru. "
                "People in %s live in",
            ],
            "test": [
                "Osaka -> Japan\nLeipzig -> Germany\nOslo -> Norway\nCusco -> Peru\n%s ->",
                "Q: Which country is Lyon in? A: France. Q: Which country is Hanoi in? A: Vietnam. "
                "Q: Which country is Denver in? A: United States. Q: Which country is %s in? A:",
                "Hanoi belongs to Vietnam, Leipzig belongs to Germany, Lima belongs to Peru, and %s belongs to",
            ],
        },
        "Continent": {
            "train": [
                "Osaka: Asia; Dakar: Africa; Hanoi: Asia; Leipzig: Europe; Busan: Asia; Denver: North America; "
                "Lima: South America; Hobart: Oceania; %s:",
                "Oslo is a city on the continent of Europe. Hanoi is a city on the continent of Asia. Dakar is a city "
                "on the continent of Africa. Denver is a city on the continent of North America. Lima is a city on the "
                "continent of South America. %s is a city on the continent of",
                "On a map, Osaka is in Asia, Lima is in South America, Dakar is in Africa, Denver is in North America, "
                "Lyon is in Europe, and %s is in",
                "Continents of cities: Denver = North America, Osaka = Asia, Lyon = Europe, Busan = Asia, "
                "Dakar = Africa, Lima = South America, Hanoi = Asia, %s =",
                "city | continent\nDakar | Africa\nBusan | Asia\nDenver | North America\nLyon | Europe\n"
                "Lima | South America\nHanoi | Asia\n%s |",
            ],
            "val": [
                '{"city": "Lima", "continent": "South America"}, {"city": "Osaka", "continent": "Asia"}, '
                '{"city": "Oslo", "continent": "Europe"}, {"city": "Dakar", "continent": "Africa"}, '
                '{"city": "Denver", "continent": "North America"}, {"city": "%s", "continent": "',
                "Denver lies in North America. Osaka lies in Asia. Lyon lies in Europe. Busan lies in Asia. "
                "Dakar lies in Africa. Lima lies in South America. Hanoi lies in Asia. %s lies in",
            ],
            "test": [
                "Denver -> North America\nOsaka -> Asia\nLyon -> Europe\nBusan -> Asia\nDakar -> Africa\n"
                "Lima -> South America\nHanoi -> Asia\n%s ->",
                "Q: Which continent is Hanoi on? A: Asia. Q: Which continent is Lyon on? A: Europe. Q: Which continent "
                "is Lima on? A: South America. Q: Which continent is Dakar on? A: Africa. Q: Which continent is Denver "
                "on? A: North America. Q: Which continent is %s on? A:",
                "The continent of Hanoi: Asia. The continent of Denver: North America. The continent of Lima: South "
                "America. The continent of Oslo: Europe. The continent of Dakar: Africa. The continent of %s:",
            ],
        },
        "Language": {
            "train": [
                "Lyon: French; Osaka: Japanese; Lima: Spanish; Leipzig: German; %s:",
                "In Oslo most people speak Norwegian. In Lima most people speak Spanish. In Hanoi most people speak "
                "Vietnamese. In %s most people speak",
                "The newspapers of Leipzig are in German. The newspapers of Lima are in Spanish. The newspapers of "
                "Busan are in Korean. The newspapers of %s are in",
                "(Leipzig, German), (Salvador, Portuguese), (Osaka, Japanese), (Lima, Spanish), (%s,",
                "city | language\nLyon | French\nBusan | Korean\nLima | Spanish\n%s |",
            ],
            "val": [
                "Rotterdam, Dutch. Salvador, Portuguese. Busan, Korean. Leeds, English. Lima, Spanish. %s,",
                "She moved to Lyon to learn French. She moved to Lima to learn Spanish. She moved to Leipzig to learn "
                "German. She moved to %s to learn",
            ],
            "test": [
                "Osaka -> Japanese\nLeipzig -> German\nDenver -> English\nCusco -> Spanish\nLyon -> French\n%s ->",
                "Q: What do people speak in Lyon? A: French. Q: What do people speak in Hanoi? A: Vietnamese. "
                "Q: What do people speak in Denver? A: English. Q: What do people speak in %s? A:",
                "The language of Osaka: Japanese. The language of Lima: Spanish. The language of Leipzig: German. "
                "The language of %s:",
            ],
        },
    },
    "object": {
        "Category": {
            "train": [
                "dog: animal; bread: food; truck: vehicle; hammer: tool; horse: animal; rice: food; "
                "car: vehicle; knife: tool; %s:",
                "If it is called hammer, it is some tool. If it is called mouse, it is some animal. If it is called "
                "car, it is some vehicle. If it is called cheese, it is some food. If it is called knife, it is some "
                "tool. If it is called truck, it is some vehicle. If it is called horse, it is some animal. If it is "
                "called bread, it is some food. If it is called %s, it is some",
                "Item: dog. Type: animal. Item: truck. Type: vehicle. Item: hammer. Type: tool. Item: bread. Type: "
                "food. Item: car. Type: vehicle. Item: horse. Type: animal. Item: %s. Type:",
                "We file hammer under tool. We file mouse under animal. We file car under vehicle. We file cheese "
                "under food. We file knife under tool. We file truck under vehicle. We file %s under",
                "(car, vehicle), (dog, animal), (knife, tool), (bread, food), (truck, vehicle), (horse, animal), "
                "(hammer, tool), (cheese, food), (%s,",
            ],
            "val": [
                "thing | group\nhammer | tool\nmouse | animal\ncar | vehicle\ncheese | food\n"
                "knife | tool\ntruck | vehicle\nhorse | animal\nbread | food\n%s |",
                "truck = vehicle, bread = food, dog = animal, hammer = tool, car = vehicle, rice = food, "
                "horse = animal, knife = tool, %s =",
            ],
            "test": [
                "bread, food. car, vehicle. mouse, animal. knife, tool. cheese, food. truck, vehicle. horse, animal. "
                "hammer, tool. %s,",
                "hammer -> tool\nmouse -> animal\ncar -> vehicle\ncheese -> food\nknife -> tool\ntruck -> vehicle\n"
                "horse -> animal\nbread -> food\n%s ->",
                "Q: What sort of thing is hammer? A: tool. Q: What sort of thing is mouse? A: animal. "
                "Q: What sort of thing is car? A: vehicle. Q: What sort of thing is cheese? A: food. "
                "Q: What sort of thing is knife? A: tool. Q: What sort of thing is truck? A: vehicle. "
                "Q: What sort of thing is horse? A: animal. Q: What sort of thing is bread? A: food. "
                "Q: What sort of thing is %s? A:",
            ],
        },
        "Plural": {
            "train": [
                "dog: dogs; horse: horses; box: boxes; knife: knives; city: cities; %s:",
                "one book, two books. one knife, two knives. one city, two cities. one %s, two",
                "(flower, flowers), (lady, ladies), (table, tables), (knife, knives), (%s,",
                "We heard of a truck, then of many trucks. We heard of a dog, then of many dogs. We heard of a box, "
                "then of many boxes. We heard of a %s, then of many",
                "I have a shirt, and you have three shirts. I have a knife, and you have three knives. I have a box, "
                "and you have three boxes. I have a %s, and you have three",
            ],
            "val": [
                "apple, apples. baby, babies. glass, glasses. horse, horses. %s,",
                "Singular: apple. Plural: apples. Singular: box. Plural: boxes. Singular: %s. Plural:",
            ],
            "test": [
                "apple -> apples\nbaby -> babies\nhorse -> horses\nbox -> boxes\nhammer -> hammers\n%s ->",
                "one | many\nhorse | horses\nglass | glasses\nkey | keys\nknife | knives\ntruck | trucks\n%s |",
                "The plural of key is keys, the plural of city is cities, the plural of box is boxes, "
                "and the plural of %s is",
            ],
        },
    },
}

OTHER: dict[str, Prompts] = {
    "verb": {
        "train": [
            "It is not always easy to %s, but",
            "My brother told me that he would never %s without",
            "Nobody in the village was able to %s after the storm, so",
            "There are many reasons to %s, and most",
        ],
        "val": ["The children were too tired to %s when", "Why would anyone %s in the middle of"],
        "test": ["Let us %s together, said the old man, and", "Before lunch she hoped to %s, yet"],
    },
    "city": {
        "train": [
            "Last summer my parents spent a week in %s, where they",
            "The train to %s was late again, so",
            "A new museum has opened in the centre of %s, and",
            "House prices in %s have gone up since",
        ],
        "val": ["The old streets of %s are full of", "When the snow came to %s, the schools"],
        "test": ["Our flight to %s leaves early in the", "The mayor of %s said on Monday that"],
    },
    "object": {
        "train": [
            "She drew a picture of a %s on",
            "For his birthday he wanted nothing but a %s and",
            "Nobody could explain why there was a %s in the",
            "The story begins with a %s that",
        ],
        "val": ["They talked about the %s all evening, because", "The photograph shows a %s next to"],
        "test": ["In my dream I saw a %s, which", "Behind the house we found a %s, and"],
    },
}
