"""The animals, food and objects of `emoji-cir`: single images for swaps within a family, training only.

Each family is a list of emojibase labels, or `label=words` where the label would not do in a sentence. A leading
`~` marks plurals and mass nouns, which take no article. Left out are flags, buttons, signs, smileys (their
labels are hard to tell apart), the paperclip (a trademark, not in Microsoft's
free release) and whatever another label of the same family would also describe.
"""

from __future__ import annotations

FAMILIES: dict[str, str] = {
    "mammal": "monkey, gorilla, orangutan, dog, poodle, wolf, fox, raccoon, cat, black cat, lion, tiger, leopard, "
    "horse, moose, donkey, unicorn, zebra, deer, bison, ox, water buffalo, cow, pig, boar, ram, ewe, goat, "
    "camel=one-hump camel, two-hump camel, llama, giraffe, elephant, mammoth, rhinoceros, hippopotamus, mouse, "
    "rat, hamster, rabbit, beaver, hedgehog, bat, polar bear, koala, panda, sloth, otter, skunk, kangaroo, badger",
    "bird": "turkey, rooster, hatching chick, penguin, eagle, duck, swan, owl, dodo, flamingo, peacock, parrot, "
    "black bird, goose, feather",
    "reptile": "frog, crocodile, turtle, lizard, snake, dragon, sauropod, T-Rex",
    "sea animal": "whale, dolphin, seal, tropical fish, blowfish, shark, octopus, spiral shell, coral=coral branch, "
    "jellyfish, crab, lobster, shrimp, squid, oyster",
    "insect": "snail, butterfly, ant, honeybee, lady beetle=ladybird, cricket, cockroach, spider, scorpion, mosquito, "
    "fly, worm, microbe",
    "flower": "bouquet, ~cherry blossom=cherry blossom, lotus=lotus flower, rose, wilted flower, hibiscus, sunflower, "
    "tulip, hyacinth",
    "plant": "seedling, potted plant, evergreen tree, deciduous tree, palm tree, cactus, sheaf of rice, "
    "herb=green herb, four leaf clover=four-leaf clover, maple leaf, empty nest, nest with eggs, mushroom",
    "fruit": "~grapes=grapes, melon, watermelon, tangerine, lemon, banana, pineapple, mango, red apple, green apple, "
    "pear, peach, ~cherries=cherries, strawberry, ~blueberries=blueberries, kiwi fruit, tomato, olive, coconut",
    "vegetable": "avocado, eggplant, potato, carrot, ear of corn, bell pepper, cucumber, leafy green, "
    "~broccoli=broccoli, garlic=garlic bulb, onion, ~peanuts=peanuts, ~beans=beans, chestnut, ginger root, pea pod",
    "meal": "bread=loaf of bread, croissant, baguette bread=baguette, flatbread, pretzel, bagel, ~pancakes=pancakes, "
    "waffle, cheese wedge=wedge of cheese, meat on bone=piece of meat on the bone, poultry leg=chicken leg, "
    "cut of meat=raw steak, ~bacon=bacon, hamburger, ~french fries=french fries, pizza=slice of pizza, hot dog, "
    "sandwich, taco, burrito, tamale, stuffed flatbread, falafel, pot of food, fondue, green salad, "
    "~popcorn=popcorn, ~butter=butter, salt=salt shaker, canned food=can of food",
    "Asian food": "bento box, rice cracker, rice ball, cooked rice=bowl of cooked rice, curry rice=plate of curry, "
    "steaming bowl=steaming bowl of noodles, spaghetti=plate of spaghetti, roasted sweet potato, "
    "~sushi=sushi, fried shrimp, fish cake with swirl, moon cake, dumpling, fortune cookie, takeout box",
    "sweet": "soft ice cream=soft-serve cone, ~shaved ice=shaved ice, doughnut, cookie, birthday cake, shortcake, "
    "cupcake, pie, chocolate bar, candy=piece of candy, lollipop, custard, honey pot",
    "drink": "baby bottle, glass of milk, hot beverage=cup of coffee, teapot, teacup without handle, sake=sake set, "
    "bottle with popping cork, wine glass=glass of wine, cocktail glass=martini glass, tropical drink, "
    "beer mug=mug of beer, tumbler glass=tumbler of whisky, cup with straw, ~bubble tea=bubble tea, "
    "beverage box=juice box, ice=ice cube",
    "building": "hut, house, house with garden, office building, post office, hospital, bank, hotel, "
    "convenience store, school, department store, factory, Japanese castle, castle, church, mosque, "
    "hindu temple=Hindu temple, synagogue, fountain, tent, ferris wheel, roller coaster, circus tent",
    "vehicle": "locomotive, high-speed train, monorail, mountain railway, tram, bus, trolleybus, minibus, ambulance, "
    "fire engine, police car, taxi, pickup truck, delivery truck, articulated lorry, tractor, racing car, motorcycle, "
    "motor scooter, auto rickshaw, bicycle, kick scooter, skateboard, roller skate, sailboat, canoe, speedboat, "
    "passenger ship, helicopter, rocket, flying saucer, parachute, mountain cableway",
    "sports gear": "soccer ball, baseball, basketball, volleyball, american football=American football, "
    "rugby football=rugby ball, tennis=tennis racket and ball, flying disc, bowling=bowling ball, "
    "ping pong=ping-pong paddle, badminton=badminton racket, boxing glove, goal net, ice skate, fishing pole, "
    "diving mask, running shirt, ~skis=skis, sled, curling stone, yo-yo, kite",
    "clothing": "~glasses=glasses, ~sunglasses=sunglasses, ~goggles=goggles, lab coat, safety vest, necktie, t-shirt, "
    "~jeans=jeans, scarf, ~gloves=gloves, coat, ~socks=socks, dress, kimono, sari, one-piece swimsuit, ~briefs=briefs, "
    "~shorts=shorts, bikini, purse, handbag, clutch bag, backpack, thong sandal=flip-flop, running shoe, hiking boot, "
    "flat shoe, high-heeled shoe, crown, top hat, graduation cap, billed cap, military helmet, lipstick, ring, "
    "gem stone=gemstone",
    "instrument": "saxophone, trumpet, accordion, guitar, musical keyboard, violin, banjo, long drum, "
    "~maracas=maracas, flute",
    "device": "mobile phone, telephone receiver, pager, fax machine, battery=full battery, laptop, printer, "
    "floppy disk, abacus, movie camera, television, camera, video camera, videocassette, light bulb, flashlight, "
    "radio, headphone=pair of headphones, electric plug",
    "tool": "hammer, axe, bomb, boomerang, bow and arrow, carpentry saw, wrench, screwdriver, nut and bolt, "
    "hook, toolbox, magnet, ladder, key, triangular ruler, straight ruler, pushpin",
    "household thing": "door, mirror, window, chair, toilet, plunger, shower, bathtub, mouse trap, razor, "
    "lotion bottle, safety pin, broom, basket, roll of paper, bucket, soap=bar of soap, toothbrush, sponge, "
    "fire extinguisher, shopping cart, alarm clock, hourglass done=hourglass, watch",
    "science thing": "test tube, petri dish, microscope, telescope, satellite antenna, syringe, pill, "
    "adhesive bandage, crutch, stethoscope, x-ray=X-ray",
}

# family -> (emojibase label pattern, colours): the caption names the colour alone, so the shape must stay.
COLOURS: dict[str, tuple[str, str]] = {
    "heart": ("{} heart", "red, pink, orange, yellow, green, blue, light blue, purple, brown, black, grey, white"),
    "circle": ("{} circle", "red, orange, yellow, green, blue, purple, brown, black, white"),
    "square": ("{} square", "red, orange, yellow, green, blue, purple, brown"),
    "book": ("{} book", "green, blue, orange"),
    "large-diamond": ("large {} diamond", "orange, blue"),
}


def things() -> list[tuple[str, str, str, str]]:
    """Return (family, emojibase label, name, noun phrase with its article) of every single image."""
    rows = []
    for family, text in FAMILIES.items():
        for item in text.split(","):
            label, _, words = item.strip().partition("=")
            bare, label = label.startswith("~"), label.removeprefix("~")
            words = words or label
            article = "" if bare else ("an " if words[0].lower() in "aeiou" or words == "X-ray" else "a ")
            if words.lower().startswith(("unicorn", "ewe")):
                article = "a "
            rows.append((family, label, words.lower().replace(" ", "-"), article + words))
    return rows


def colours() -> list[tuple[str, str, str, str]]:
    """Return (family, emojibase label, name, colour) of every image of a colour series."""
    return [
        (family, pattern.format(colour), f"{colour} {family}".replace(" ", "-"), colour)
        for family, (pattern, text) in COLOURS.items()
        for colour in (c.strip() for c in text.split(","))
    ]
