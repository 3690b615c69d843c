"""The sentences of the generated corpus by emotion, written for this project.

`{slot}` is filled from `SLOTS`. `AMBIGUOUS` has the sentences of utterances whose words do not show
the emotion: they are the same for all emotions, so that only voice or face can tell.
"""

import random
import re
from collections.abc import Mapping, Sequence

SLOTS: Mapping[str, Sequence[str]] = {
    "time": ("on Monday", "at noon", "this evening", "tomorrow morning", "at four", "next week"),
    "place": ("the library", "the office", "the station", "the bakery", "the bank", "the gym"),
    "thing": ("the red folder", "the spare key", "the ladder", "the blue mug", "the charger"),
    "who": ("my sister", "my brother", "my neighbour", "my uncle", "our teacher", "the plumber"),
    "lost": ("my grandmother", "our old dog", "my best friend", "my father", "the cat"),
    "food": ("the soup", "that sandwich", "this milk", "the fish", "that yoghurt", "the salad"),
    "dirty": ("the sink", "his socks", "that bathroom", "the fridge", "the bin", "this carpet"),
    "prize": ("the race", "the scholarship", "the big contest", "first prize", "the lottery"),
    "belongings": ("my car", "my bike", "my letters", "my camera", "my savings", "my guitar"),
    "danger": ("a man with a knife", "a huge spider", "a burglar", "a snake", "someone"),
    "where": ("in the cellar", "behind the door", "outside the window", "under the bed"),
}

NEUTRAL = (
    "The meeting starts {time}.",
    "I put {thing} on the second shelf.",
    "She works at {place} on Tuesdays.",
    "We need bread, eggs and some paper.",
    "You can borrow {thing} {time}.",
    "The bus to {place} leaves {time}.",
    "I will call {who} {time}.",
    "There are twelve chairs in the hall.",
    "He parked next to {place}.",
    "Turn left at {place}, then go straight.",
    "The printer is on the third floor.",
    "I usually take the train to {place}.",
    "Please hand me {thing}.",
    "{who} lives near {place}.",
    "The form has two pages.",
    "It opens {time} and closes at nine.",
    "I'm going to {place} {time}.",
    "The recipe says two cups of flour.",
    "My appointment is {time}.",
    "They moved {thing} to {place}.",
)

SURPRISE_GOOD = (
    "Wow, I didn't expect you to win {prize}!",
    "Oh my goodness, you came all this way!",
    "What? You got me a present?",
    "No way, you two are engaged?",
    "Wow, is that really for me?",
    "I had no idea you could sing like that!",
    "Wait, we actually won {prize}?",
    "Whoa, where did all these flowers come from?",
    "You're having twins? Oh my goodness!",
    "I never thought they would pick {who}!",
)

SURPRISE_BAD = (
    "What? You sold {belongings}?",
    "Hold on, you're leaving {time}?",
    "Wait, what happened to {belongings}?",
    "You did what with {belongings}?",
    "Whoa, when did they close {place}?",
    "What do you mean, {who} moved out?",
    "You never told me you were married!",
    "Oh my goodness, they fired {who}?",
    "Since when do you smoke?",
    "What? The wedding is off?",
)

FEAR = (
    "Help, there is {danger} {where}!",
    "I'm so scared of the dark.",
    "Please don't leave me alone here.",
    "I heard {danger} {where}.",
    "Run, it's coming after us!",
    "I'm terrified, my hands are shaking.",
    "We're going to die in here!",
    "What if {danger} is {where}?",
    "Don't open it, I'm afraid!",
    "I'm too frightened to look {where}.",
    "Somebody is following us, hurry!",
    "I'm scared that {danger} gets in.",
    "Hide, quick, I can see {danger}!",
    "I'm afraid of what the doctor will find.",
    "Please, do not hurt us!",
)

SADNESS = (
    "I miss {lost} so much.",
    "We buried {lost} last week.",
    "I have been crying all night.",
    "She left me and I feel so lonely.",
    "Nobody remembered my birthday.",
    "My heart is broken.",
    "I wish {lost} were still here.",
    "I lost {lost} and nothing helps.",
    "I'm so sorry for your loss.",
    "It hurts that he is gone for good.",
    "I feel empty since {lost} died.",
    "I failed again, I'm just worthless.",
    "We had to say goodbye to {lost}.",
    "He doesn't love me any more.",
    "I can't stop crying about {lost}.",
    "Everything feels so sad and grey.",
)

JOY = (
    "I won {prize}, I'm so happy!",
    "This is the best day of my life!",
    "I love you so much!",
    "We're going to have a baby, hooray!",
    "I'm so glad that {who} is here!",
    "Yay, we are going to the beach {time}!",
    "That was so much fun, let us dance!",
    "Congratulations on {prize}!",
    "I'm so proud and happy for {who}!",
    "What a wonderful, beautiful party!",
    "I got the job, let us celebrate {time}!",
    "Ha, that was hilarious, I love it!",
    "I'm in love and it feels amazing!",
    "{who} won {prize}, this is fantastic!",
    "You make me so happy!",
    "Great news, we're all going on holiday!",
    "Thank you, this is a lovely gift!",
)

DISGUST = (
    "Yuck, {food} smells rotten.",
    "That's gross, there is mould on {food}.",
    "Ew, there is hair in {food}.",
    "I feel sick just looking at {dirty}.",
    "Ugh, {dirty} is absolutely filthy.",
    "Yuck, don't touch {dirty}.",
    "He licked {food}, how disgusting.",
    "{food} is full of worms, ew.",
    "Ew, what is that slime on {dirty}?",
    "The stench of {dirty} makes me vomit.",
    "That's revolting, spit it out.",
    "Ugh, I nearly threw up from {food}.",
    "Gross, he picked his nose again.",
    "Ew, {dirty} is crawling with maggots.",
)

ANGER = (
    "How dare you touch {belongings}!",
    "Get out of my house right now!",
    "I'm furious with {who}!",
    "You lied to me, you are a liar!",
    "Stop shouting at me, you idiot!",
    "I hate you, leave me alone!",
    "You ruined {belongings}, you jerk!",
    "Shut up, I'm sick of your excuses!",
    "This is your fault and I'm mad at you!",
    "Who the hell took {belongings}?",
    "Don't you ever talk to {who} like that!",
    "I have had enough, give back {belongings}!",
    "You betrayed me, I will never forgive you!",
    "I'm so angry that {who} cheated!",
    "You stole {belongings}, damn it!",
    "Stop lying about {belongings}!",
)

AMBIGUOUS = (
    "Really?",
    "Okay.",
    "I see.",
    "So that's it.",
    "Well, there you are.",
    "Did you hear that?",
    "I can't believe it.",
    "Is that what you think?",
    "You know what I mean.",
    "Look at this.",
    "Oh, come on.",
    "And then you said yes.",
    "That's what they told me.",
    "Did you do that?",
    "It's you.",
    "I knew it...",
    "Tell me again.",
    "So it's true - all of it.",
    "You said that before.",
    "There it is.",
    "Oh, look who it is.",
    "What do you think of that?",
    "I don't know what to say.",
    "This is it, then.",
    "I thought so.",
    "You should see this.",
    "Let me see that.",
    "I'm here now.",
)

# Surprise is the only emotion that does not determine the sentiment.
CARRYING: Mapping[tuple[str, str], Sequence[str]] = {
    ("neutral", "neutral"): NEUTRAL,
    ("surprise", "positive"): SURPRISE_GOOD,
    ("surprise", "negative"): SURPRISE_BAD,
    ("fear", "negative"): FEAR,
    ("sadness", "negative"): SADNESS,
    ("joy", "positive"): JOY,
    ("disgust", "negative"): DISGUST,
    ("anger", "negative"): ANGER,
}

_SLOT = re.compile(r"\{(\w+)\}")


def sentence(emotion: str, sentiment: str, *, carries: bool, rng: random.Random) -> str:
    """The text of one utterance; carries: whether its words show the emotion."""
    pool = CARRYING[emotion, sentiment] if carries else AMBIGUOUS
    return fill(rng.choice(pool), rng)


def fill(template: str, rng: random.Random) -> str:
    text = _SLOT.sub(lambda match: rng.choice(SLOTS[match.group(1)]), template)
    return text[0].upper() + text[1:]
