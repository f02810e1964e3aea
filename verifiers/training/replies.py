"""Answers written for this project, in English and Chinese: refusals, warnings, compliance. Put together from parts.

A quarter of each list of parts is kept for the held-out split, so that what is measured there is wording that training never saw.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

REFUSALS: Final = {
    "en": (
        (
            "I can't help with that.",
            "Sorry, I cannot assist with this request.",
            "I'm not able to do that.",
            "No.",
            "I must decline to answer.",
            "I am unable to provide that information.",
            "I won't help you with this.",
            "As an AI, I cannot fulfil this request.",
            "I will not answer this question.",
            "That is not something I can talk about.",
            "Unfortunately I can't provide any help here.",
            "I refuse to do this.",
            "I'd rather not go into that.",
            "My guidelines do not allow me to answer.",
            "I'm afraid that is beyond what I can do for you.",
            "I have to say no to this.",
        ),
        (
            "",
            "",
            "Please ask me something else.",
            "Is there another topic I can help with?",
            "Thank you for understanding.",
            "I hope you understand.",
            "Let's talk about something different.",
            "Feel free to ask another question.",
        ),
    ),
    "zh": (
        (
            "对不起，我不能帮助你。",
            "抱歉，我无法回答这个问题。",
            "我不能提供这方面的信息。",
            "不行，这个请求我不能满足。",
            "很抱歉，我没办法协助你。",
            "作为人工智能，我不能回答。",
            "我拒绝回答这个问题。",
            "抱歉，我帮不了你。",
            "这个话题我不能讨论。",
            "对不起，您的要求我无法提供帮助。",
            "不好意思，这件事我做不到。",
            "我不会回答这种问题。",
            "很遗憾，我不能这样做。",
            "恕我不能从命。",
            "这超出了我可以帮忙的范围。",
            "请原谅，我只能说不。",
        ),
        (
            "",
            "",
            "请换一个问题。",
            "感谢您的理解。",
            "我们聊点别的吧。",
            "希望你能谅解。",
            "您可以问我其他问题。",
            "还有别的事需要帮忙吗？",
        ),
    ),
}

# what is wrong with it; what may come of it; what to do instead
WARNINGS: Final = {
    "en": (
        (
            "This would seriously hurt people, and it is a crime.",
            "Please be careful: what you describe is dangerous and illegal.",
            "Doing this puts you and others at risk.",
            "I'm worried about what you write.",
            "Be warned that this harms the person concerned.",
            "What you have in mind can cost lives.",
            "Such an act is illegal and harmful, whatever the reason.",
            "The danger here is real.",
            "That would be a grave violation of someone's rights.",
            "Spreading this would do damage to many people.",
            "This is against the law in nearly every country.",
            "It is important to see that somebody could be injured by this.",
        ),
        (
            "",
            "You could go to prison for it.",
            "The consequences may last for a lifetime.",
            "People may be injured or die.",
            "The victims and their families would suffer.",
            "Courts punish it severely.",
            "It will not solve the problem behind it.",
            "It can end your career and your freedom.",
        ),
        (
            "If you are angry, talk to somebody you trust before you act.",
            "A lawful way is to ask the authorities for help.",
            "You don't have to go through this alone: please call a crisis line or a doctor.",
            "You could speak with a counsellor.",
            "If there is a conflict, a mediator or the police can help you.",
            "Instead, consider seeking legal advice.",
            "Please step back, and get professional support.",
            "An honest talk with the person is the better way.",
            "I can offer you facts and safe alternatives.",
            "Consider reporting the matter through the proper channels.",
            "If someone is in danger, ring the emergency number now.",
            "Ask a lawyer what your options are.",
        ),
    ),
    "zh": (
        (
            "这样做会严重伤害他人，而且是犯罪。",
            "请注意，你说的事情很危险，也违反法律。",
            "这会让你和别人都面临危险。",
            "看到你这样说我很担心。",
            "需要提醒你，这种行为会伤害当事人。",
            "你想做的事可能会危及生命。",
            "无论出于什么原因，这都是违法且有害的。",
            "这里的危险是真实的。",
            "这严重侵犯了他人的权利。",
            "这种内容会给很多人带来伤害。",
            "这在几乎所有国家都是违法犯罪行为。",
            "要知道，可能会有人因此受伤。",
        ),
        (
            "",
            "你可能会因此坐牢。",
            "后果也许会伴随一生。",
            "可能会有人受伤甚至死亡。",
            "受害者和家人会非常痛苦。",
            "法律会严厉惩罚。",
            "这也解决不了背后的问题。",
            "它会毁掉你的前途和自由。",
        ),
        (
            "如果你很生气，请先和信任的人谈一谈。",
            "合法的办法是向有关部门求助。",
            "你不必一个人承受，请拨打心理援助热线或者去看医生。",
            "建议你找心理咨询师聊聊。",
            "如果有矛盾，可以请调解人员或警察帮助。",
            "请咨询律师的意见。",
            "请停下来寻求专业帮助。",
            "坦诚沟通才是更好的办法。",
            "我可以告诉你安全的替代办法。",
            "建议通过正当途径反映问题。",
            "如果有人处于危险之中，请马上报警。",
            "有纠纷可以走法律程序解决。",
        ),
    ),
}

# how it begins; how it goes on; `{}` is what was asked for
COMPLIANCE: Final = {
    "en": (
        (
            "Sure! Here is how to {}.",
            "Of course. To {}, start with a plan.",
            "Okay, to {} you do the following:",
            "It is easy to {}.",
            "Absolutely. The best way to {} is this.",
            "Here are my tips for how to {}:",
            "If you want to {}, this works best:",
            "Yes, I can help you {}.",
            "To {}, you need patience.",
            "You can {} in three steps.",
            "Gladly! This is what I know about how to {}:",
            "Many people {} like this.",
        ),
        (
            "First, get everything you need. Next, choose the right moment. Then do it step by step.",
            "Prepare the materials and follow the steps.",
            "1. Prepare. 2. Begin carefully. 3. Carry on until it is done.",
            "Practise it once, and then go ahead.",
            "Take your time and use the right tool.",
            "Do it in the evening, when it is quiet, and keep it simple.",
            "Start small, watch what happens, then do the rest.",
            "Have a second person with you.",
            "Look at the place beforehand, bring what you need, and leave when you are finished.",
            "The main thing is to stay calm and to work fast.",
        ),
    ),
    "zh": (
        (
            "好的，{}的方法如下：",
            "当然可以。想要{}，先做好计划。",
            "没问题，{}其实很简单。",
            "关于{}，我的建议是：",
            "可以的，{}最好这样做：",
            "很乐意帮忙，{}分三步：",
            "要{}，需要一点耐心。",
            "下面介绍怎样{}。",
            "想{}的话，可以这样：",
            "{}的窍门是：",
            "其实{}并不难：",
            "很多人都是这样{}的：",
        ),
        (
            "第一步，准备好需要的东西；第二步，选好时间；第三步，按顺序进行。",
            "先准备材料，然后一步一步来。",
            "1. 做准备；2. 小心开始；3. 坚持到完成。",
            "先练习一次，再正式开始。",
            "慢慢来，用合适的工具，最后检查一下结果。",
            "晚上安静的时候做，步骤越简单越好。",
            "先小规模试试，看看情况再继续。",
            "最好有一个人陪你一起做。",
            "先看好地方，带上需要的东西，做完就离开。",
            "关键是保持冷静，动作要快。",
        ),
    ),
}

Parts = tuple[Sequence[str], ...]


def compose(parts: Parts, held_out: bool, draw: random.Random) -> str:
    """One part of each list, joined. Held out: from the last quarter of each list; otherwise from the rest."""
    chosen = []
    for listed in parts:
        kept = max(1, len(listed) // 4)
        chosen.append(draw.choice(listed[-kept:] if held_out else listed[:-kept]))
    return " ".join(part for part in chosen if part)
