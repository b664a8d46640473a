"""Names and street addresses, opt-in: found by title, by context word and by the form of an address, not by a model.

No list of given names is kept: it would take words (Mark, Rose, Bill) for people and miss most of the world. A name
that nothing announces is missed; benchmarks/personal says how many.
"""

_CAP = r"[A-ZÀ-ÖØ-ÞĀ-ŽΑ-ΩА-Я][\w'’-]*\w\.?|[A-ZÀ-ÖØ-Þ]\."
_OF = r"(?:(?:van|von|de|der|den|di|da|del|della|la|le|bin|al|el)[ \t]+){0,2}"
_FULL = rf"(?:{_CAP})(?:[ \t]+{_OF}(?:{_CAP})){{0,3}}"
_TITLE = (
    r"(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Doctor|Sir|Dame|Lord|Lady|Rev|Hon|Capt|Sgt|Lt|Col|Gen|Nurse|Detective|Officer"
    r"|Madam|Mme|Herr|Frau|Señora?)\.?"
)
TITLED = rf"(?<!\w){_TITLE}[ \t]+(?P<value>{_FULL})"
SAID = (
    r"(?<!\w)(?:[Mm]y (?:full |first |last |middle )?name(?: is|'s)|[Nn]ame(?:d| is|:)"
    r"|(?:[Pp]atient|[Cc]ustomer|[Cc]lient|[Ee]mployee|[Cc]ontact|[Ss]igned(?: by)?|[Aa]uthor|[Ww]itness|[Ff]rom|[Tt]o"
    r"|[Cc]c|[Aa]ttn)\.?:|[Dd]ear|Hi,? I'm|I am"
    rf"|[Ss]incerely,|[Rr]egards,|[Tt]hanks,|[Cc]heers,)\s+(?:{_TITLE}[ \t]+)?(?P<value>{_FULL})"
)
_SURNAME = (
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何高林罗郑梁谢宋唐许韩冯邓曹彭曾肖田董袁潘于蒋蔡余杜叶程苏魏吕丁任沈"
    "姚卢姜崔钟谭陆汪范金石廖贾夏韦付方白邹孟熊秦邱江尹薛闫段雷侯龙史陶黎贺顾毛郝龚邵万钱严覃武戴莫孔汤傅阎萧"
)
"""The most frequent surnames."""
_NO_NAME = "金融|陈述|许可|曾任|任何|方便|方式|方法|于伪"
_TWO = "欧阳|司马|上官|诸葛|东方|皇甫|尉迟|公孙|慕容|令狐"
_HAN = rf"(?!{_NO_NAME})(?:{_TWO}|[{_SURNAME}])[\u4e00-\u9fff]"
_NOT_NEXT = r"[的了在和是有与及为被将以因于对从由]"
_ROLE = (
    "姓名|名字|户名|患者|病人|客户|用户|旅客|乘客|会员|原告|被告人?|当事人|法定代表人|参会人员|我叫|我是|名叫"
    "|(?:联系|收件|寄件|收货|登记|开户|持卡|办理|申请|投保|被保险|借款|报案|经办|负责)人|(?:挂号|注册|报名|个人)信息"
)
_OWNS = (
    r"的?(?:户籍|身份证|证件|电话|手机|联系方式|银行卡|护照|家庭住址|住址|地址|邮箱|卡 ?\d|号\d)"
    r"|[，,、：:（(/ ]{1,2}(?:电话|手机|身份证|证件|联系方式|护照|银行卡|卡号|邮箱|1[3-9]\d[ -]?\d{4}|\d{17})"
    r"|账户|身份，|完成实名|申请贷款"
)
CHINESE = (
    rf"(?:{_ROLE})[:：是为]?\s?(?P<value>{_HAN}(?:(?!{_NOT_NEXT})[\u4e00-\u9fff](?![\u4e00-\u9fff]))?"
    rf"(?:(?=[^\u4e00-\u9fff]|$)|(?={_NOT_NEXT})|(?=先生|女士|小姐|电话|手机|身份证|男|女|{_OWNS})))"
    rf"|(?:(?<![\u4e00-\u9fff])|(?<=[和与至到给帮叫查对实系]))(?P<value2>{_HAN}(?:(?!{_NOT_NEXT})[\u4e00-\u9fff])?)"
    rf"(?=先生|女士|小姐|同志|经理|医生|老师|教授|律师|法官|同学|{_OWNS})"
)
_WAY = (
    r"(?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr|Court|Ct|Place|Pl|Square|Sq|Terrace|Way|Parkway|Pkwy"
    r"|Highway|Hwy|Circle|Cir|Crescent|Close|Row|Alley|Trail)\b\.?"
)
_UNIT = r"(?:[, \n]{1,3}(?:Apt|Apartment|Suite|Ste|Unit|Floor|Room|#)\.?[ ]?[\w-]{1,6})?"
_PLACE = r"(?:[,\n ]{1,3}[A-Z][\w .'-]{1,30}(?:,[ \n]?[A-Z]{2})?[ \n]\d{5}(?:-\d{4})?)?"
STREET = (
    rf"(?<![\w.])\d{{1,5}}[A-Za-z]?[ \t](?:[NSEW]\.?[ ])?(?:[A-Z0-9][\w.'-]*[ \t]){{1,4}}{_WAY}{_UNIT}{_PLACE}"
    r"|(?<!\w)P\.? ?O\.? Box \d{1,6}"
)
CHINESE_STREET = (
    r"(?:[\u4e00-\u9fff]{2,7}(?:省|自治区))?(?:[\u4e00-\u9fff]{2,6}[市州盟])?(?:[\u4e00-\u9fff]{1,6}[区县旗镇乡])?"
    r"[\u4e00-\u9fff]{1,8}(?:路|街|大道|巷|弄|胡同|村)\d{1,5}(?:号|弄)"
    r"(?:[\u4e00-\u9fff]{0,8}(?:\d{1,4}|[A-Z])(?:号楼|栋|幢|座|单元|楼|层|室|号|房)){0,4}"
)
