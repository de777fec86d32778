"""The words of the pages in English and Chinese. The English sentence is the key."""

from collections.abc import Callable, Sequence

LANGUAGES = ("en", "zh")
CHINESE: dict[str, str] = {
    # Pages and sessions.
    "Overview": "概览",
    "Updates": "更新",
    "Pages": "页面",
    "Skip to the content": "跳到正文",
    "Log in": "登录",
    "Log out": "退出",
    "read only": "只读",
    "Token": "令牌",
    "This token is not known here.": "这里没有这个令牌。",
    "The history keeps the name of the token's owner.": "操作记录中会显示令牌所有者的名称。",
    "This console only shows. Start it with --operate and --tokens to act.": (
        "此控制台只供查看。要执行操作，请用 --operate 和 --tokens 启动。"
    ),
    "why": "原因",
    "all models": "全部模型",
    "none set": "未设置",
    "Ask the live model": "询问当前模型",
    "Calls that got another answer": "预测结果不同的调用",
    "What callers sent, kept because server.keep_samples allows it: at most the first 100.": (
        "调用方发送的内容，因 server.keep_samples 允许而保留：最多显示前 100 条。"
    ),
    "Original": "原文",
    "Turned away": "被拒绝",
    "Enlarge": "放大",
    "Problem": "出错",
    "That did not work": "操作没有成功",
    "Cancel": "取消",
    # Slots and health.
    "Health": "健康状况",
    "The server has no models.": "服务器上没有模型。",
    "Process": "进程",
    "Resources": "资源",
    "draining": "正在排空",
    "event-loop lag": "事件循环延迟",
    "memory": "内存",
    "disk free": "磁盘可用",
    "answers": "响应正常",
    "does not answer": "无响应",
    "last answer took": "最近一次响应耗时",
    "waiting": "个请求在等待",
    "OK": "正常",
    "DEGRADED": "降级",
    "FAILED": "故障",
    "Slot": "槽位",
    "ACTIVE": "当前版本",
    "TRIAL": "试运行中",
    "CANDIDATE": "候选",
    "PREVIOUS": "上一版本",
    "FALLBACK": "转到 CPU",
    "FREE": "空闲",
    "EMPTY": "无进程",
    "STARTING": "启动中",
    "READY": "备用",
    "LOADING": "加载中",
    "LOADED": "已加载",
    "RETIRING": "退出中",
    "no model": "没有模型",
    "State": "状态",
    "Device": "设备",
    "Memory": "内存",
    "Deaths": "异常退出",
    "On trial: slot": "试运行中：槽位",
    "since": "开始于",
    "Requests on which it fails are answered by the other slot.": "它失败的请求由另一个槽位兜底。",
    "the device ran out of memory": "设备内存不足",
    # Updates.
    "Update": "更新",
    "evidence": "依据",
    "none under way": "没有进行中的更新",
    "Committed": "已正式启用",
    "last checked the hub (UTC)": "上次检查仓库（UTC）",
    "paused": "已暂停",
    "quarantine": "已隔离",
    "end it": "解除",
    "Resume updates": "恢复更新",
    "Pause updates": "暂停更新",
    "Ask the hub now": "立即查询仓库",
    "Roll back": "回滚",
    "History": "更新记录",
    "IDLE": "空闲",
    "STAGING": "下载",
    "VERIFYING": "校验与转换",
    "GATING": "基准集验证",
    "SHADOWING": "影子比对",
    "ACTIVATING": "切换",
    "OBSERVING": "试运行观察",
    "COMMITTING": "正式启用",
    "ROLLING_BACK": "正在回滚",
    "HELD": "待人工决定",
    "COMMITTED": "已正式启用",
    "REFUSED": "未通过，已拒绝",
    "ROLLED_BACK": "已回滚",
    "ABANDONED": "已放弃",
    "under way": "进行中",
    "ended here": "在此终止",
    "not reached": "未执行",
    "Past updates": "历次更新",
    "Past updates, the newest first": "历次更新，最新的在前",
    "Ended (UTC)": "结束（UTC）",
    "Began (UTC)": "开始（UTC）",
    "Model": "模型",
    "Revision": "版本",
    "Outcome": "结果",
    "Reason": "原因",
    "No update has ended yet.": "还没有结束的更新。",
    "Older": "更早",
    "What to do:": "建议：",
    "Source": "源文件",
    "Bundle": "模型包",
    "Checked": "已检查",
    "What was measured": "测量结果",
    "Measure": "指标",
    "This revision": "此版本",
    "Active model then": "当时的当前版本",
    "Limit": "阈值",
    "Verdict": "结论",
    "passes": "通过",
    "fails": "未通过",
    "for information": "仅供参考",
    "lower is better": "越低越好",
    "higher is better": "越高越好",
    "Answers to the golden set": "在基准集上的预测",
    "Answers to callers": "对调用方的响应",
    "Speed and memory": "速度与内存",
    "right answers": "正确率",
    "right answers, against the least that is required": "正确率，与要求的下限相比",
    "answers that were right before and are wrong now": "由对变错的预测结果",
    "chance that an equally good model looks as bad": "同样好的模型偶然表现至此的概率",
    "same answers as the active model": "与当前版本相同的预测结果",
    "right parts of addresses (F1)": "地址各部分的正确率（F1）",
    "answers that are no number": "不是数的输出",
    "questions without an answer": "未返回结果的题目",
    "answers that differ from the previous revision's": "与上一版本不同的预测结果",
    "failed requests": "失败的请求",
    "failed requests and probes": "失败的请求与探测",
    "unexpected ends of its process": "计算进程意外退出次数",
    "time to answer, p95": "响应时间 p95",
    "device time of one question": "每题的设备时间",
    "chance that an equally fast model looks as slow": "同样快的模型偶然慢至此的概率",
    "device time of the whole golden set": "整个基准集的设备时间",
    "memory, against the plan": "内存，与计划相比",
    "Which answers changed into which": "预测结果的变化（旧 → 新）",
    "changed on the golden set. A row is the active model's answer, a column this revision's.": (
        "在基准集上有变化。行为当前版本的预测结果，列为此版本的预测结果。"
    ),
    "none": "无",
    "other characters": "起止不同",
    "wrong as before": "与之前一样错",
    "Answers that differ": "预测差异",
    "Filter": "筛选",
    "all": "全部",
    "now wrong": "由对变错",
    "now right": "由错变对",
    "changed": "其他变化",
    "picture of": "图片：",
    "Expected": "标准答案",
    "What happened": "更新过程",
    # Commands of operators.
    "approve": "批准",
    "rollback": "回滚",
    "unquarantine": "解除隔离",
    "step": "进入下一步",
    "promote": "全量放开",
    "The rollout goes on to its next step now: more callers, or the trial.": (
        "立即进入下一步：更多调用方，或开始试运行。"
    ),
    "The canary gets all requests now; its last window still passes.": (
        "金丝雀立即获得全部请求；最后一个观察窗口仍会走完。"
    ),
    "Labels of the answers, by revision": "预测标签分布，按版本",
    "of the requests": "的请求",
    "pause": "暂停更新",
    "resume": "恢复更新",
    "check": "查询仓库",
    "The held update goes on, as if it had passed.": "待定的更新将继续进行，视为通过。",
    "The previous revision answers again, this one goes into quarantine, and updates pause.": (
        "恢复由上一版本服务，此版本被隔离，更新暂停。"
    ),
    "The revision may be installed again.": "此版本可以再次安装。",
    "No update starts until updates are resumed.": "恢复之前不会开始任何更新。",
    "Updates start again, and a held one is tried again.": "更新重新开始，待定的更新会再试一次。",
    "The hub is asked for revisions now.": "现在向仓库查询版本。",
    "Reason, for the history": "原因（写入历史）",
    "Type the revision's name to confirm:": "输入版本名以确认：",
    "The history keeps that this was done by": "历史记录会保存操作者：",
    "A reason is needed: the history keeps it.": "需要填写原因：历史记录会保存它。",
    "What you typed is not the revision's name.": "输入的不是版本名。",
    # Traffic.
    "Answers a second": "每秒响应数",
    "Latency": "延迟",
    "Latency: p50, and p99 thin": "延迟：p50，细线为 p99",
    "Last hour by revision": "最近一小时，按版本",
    "Answers": "响应",
    "Failed": "失败",
    "answers now": "正在服务",
    "No request in the last hour, as far as this console has seen.": "最近一小时控制台未收到请求记录。",
    # Try.
    "Try": "试一试",
    "Does the picture show what a sentence says?": "图片是否符合句子的描述？",
    "Which parts does an address have?": "地址由哪些部分组成？",
    "Now answers": "当前服务版本",
    "Picture": "图片",
    "the chosen picture": "所选图片",
    "Choose, drop or paste a JPEG, PNG or WebP. It is not written anywhere.": (
        "选择、拖入或粘贴 JPEG、PNG 或 WebP 图片。图片不会被保存。"
    ),
    "Statements, one a line": "待判断的语句，每行一条",
    "Addresses, one a line": "地址，每行一个",
    "Premise, if any": "前提（可不填）",
    "Send": "发送",
    "asking …": "正在请求……",
    "Examples": "示例",
    "No answer": "无响应",
    "the answer": "预测结果",
    "yes": "是",
    "no": "否",
    "maybe": "不确定",
    "Parts": "组成部分",
    "Kind": "类别",
    "Text": "文本",
    "Probability": "概率",
    "queued": "排队",
    "prepared": "预处理",
    "computed": "计算",
    "This should be answered otherwise: add it to the golden set": "预测不对？加入基准集",
    "The right answers": "正确答案",
    "Name of the item; empty: one is made": "条目名称；留空则自动生成",
    "Add to the golden set": "加入基准集",
    "Added to the golden set:": "已加入基准集：",
    "The same call to copy": "复制同样的调用",
    # Problems.
    "no server answers; `hotslot serve` starts one": "服务器无响应；hotslot serve 可启动一个。",
    "no server answers": "服务器无响应。",
    "the control socket does not answer: the server is away, or runs on another machine": (
        "控制套接字无响应：服务器不在，或运行在另一台机器上。"
    ),
    "the updater does not answer: it is away, or runs on another machine": (
        "更新程序无响应：它不在，或运行在另一台机器上。"
    ),
    "the server did not answer in time": "服务器未及时响应。",
    "the control socket did not answer in time": "控制套接字未及时响应。",
    "the updater did not answer in time": "更新程序未及时响应。",
    "the console is stopping": "控制台正在停止。",
    "there is no such page": "没有这个页面。",
    "internal error; see the log of the console": "内部错误；请查看控制台的日志。",
    "choose the right answer to each question": "请为每个题目选择正确答案。",
    "the golden set is too large to export: copy its folder": "基准集太大，不能导出：请复制其文件夹。",
    "the archive is too large": "压缩文件太大。",
    "the file is no ZIP archive of golden.jsonl and its pictures": "文件不是 golden.jsonl 及其图片的 ZIP 文件。",
    "golden.jsonl in the archive cannot be used": "压缩文件中的 golden.jsonl 无法使用。",
    "the form has no length": "表单没有长度。",
    "the form is too large": "表单太大。",
    "too many forms arrive now: send it again in a minute": "同时提交的表单过多：请一分钟后重新提交。",
    "the form did not arrive in time": "表单未能及时传完。",
    "the form is neither multipart/form-data nor application/x-www-form-urlencoded": "表单的类型不受支持。",
    "the form is malformed": "表单格式不正确。",
    "the page is of another session: load it again, and send the form again": (
        "页面属于另一个会话：请重新载入页面后再发送。"
    ),
    "the picture is larger than the server takes": "图片超过服务器接受的大小。",
    "the picture that the page kept is damaged: choose it again": "页面保留的图片已损坏：请重新选择。",
    "there is no such command": "没有这个命令。",
    "this console only shows; start it with --operate to act": "此控制台只供查看；要执行操作，请用 --operate 启动。",
    "log in first: the history keeps who acted": "请先登录：操作记录会保存操作者。",
    # Golden sets.
    "Golden set": "基准测试集（golden set）",
    "Check the live model": "用基准集检查当前模型",
    "Export": "导出",
    "Import": "导入",
    "Items": "条目",
    "items": "个条目",
    "Item": "条目",
    "Questions": "问题",
    "With an expected answer": "有标准答案",
    "Required accuracy": "准确率下限",
    "What it cannot see: a fault that changes less than this share of answers may pass unseen (95 %):": (
        "检测盲区：影响预测结果的比例低于此值的错误可能无法检出（置信度 95%）："
    ),
    "Coverage by label": "标签覆盖",
    "Next page": "下一页",
    "ZIP archive of golden.jsonl and its pictures": "golden.jsonl 及其图片的 ZIP 文件",
    "Check": "检验",
    "Each golden item is asked of the model that answers now, one after another.": (
        "将基准集中的题目逐条发送给当前模型。"
    ),
    "Without JavaScript:": "未启用 JavaScript 时，请在终端运行：",
    "Right": "正确",
    "without an answer": "未返回结果",
    "Wrong answers": "错误的预测",
    "Answer": "预测结果",
}


def translator(language: str) -> Callable[[str], str]:
    """The function that gives a sentence in a language; what has no translation stays English."""
    return (lambda sentence: CHINESE.get(sentence, sentence)) if language == "zh" else (lambda sentence: sentence)


def choose_language(asked: str, kept: str, accepted: str) -> str:
    """The language of a page: what was clicked, else what was clicked before, else the browser's first known one."""
    for wanted in (asked, kept, *_list_wanted(accepted)):
        if wanted[:2].lower() in LANGUAGES:
            return wanted[:2].lower()
    return LANGUAGES[0]


def _list_wanted(accepted: str) -> Sequence[str]:
    """The languages of an Accept-Language header, the most wanted first."""
    rows = []
    for part in accepted[:500].split(","):
        name, _, quality = part.strip().partition(";q=")
        try:
            rows.append((float(quality or 1), name))
        except ValueError:
            continue
    return [name for _, name in sorted(rows, key=lambda row: -row[0])]
