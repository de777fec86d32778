"""docs/zh/troubleshooting.md: the same page in Chinese; an advice of the code that has no translation is an error."""

from collections.abc import Mapping

from cli.monitoring.log_events import MEANINGS
from updater.core.record import HeldFor
from updater.service.convert import HELD_ADVICE

HEAD = """# 故障排查

表格对应 hotslot 自己给出的建议：`hotslot updates status`、`hotslot updates show ID`、`hotslot logs explain` 和 `hotslot doctor` 会在对应位置直接给出（英文）。
本页由 `python -m dev.documents.generated` 生成。

## 第一步

```sh
hotslot doctor
hotslot status
hotslot updates status
hotslot logs explain hotslot.log
```

`hotslot doctor` 检查设置、磁盘、内存、证书、基准测试集（golden set，下称基准集）、进程和套接字，不做任何改动，并对每项发现说明如何处理。`hotslot logs explain` 将日志整理为可读的事件时间线；
`hotslot.log` 是保存 `hotslot serve` 标准输出的文件；使用 systemd 时执行 `journalctl -u hotslot -o cat | hotslot logs explain`。

`hotslot hub doctor MODEL` 以只读方式查询模型仓库：会采用哪个版本，其他版本为何不采用；MODEL 是 `hotslot.toml` 中的模型，或仓库上的 OWNER/NAME（[输出说明](../hub-doctor.md)，英文）。

各种情况下 hotslot 自动做什么：[发生各类事件时会怎样](what-happens.md)。预测错误、需要回退：[停止更新并回退](../how-to/stop-and-go-back.md)（英文）。
告警有对应的 [runbook](../runbooks/README.md)；调用方看到的错误见[错误原因](../error-reasons.md)；版本被拒绝的原因见[检查项](../verification.md)（均为英文）。

## 无响应

| 现象 | 处理 |
|---|---|
| `hotslot healthcheck` 无法连接 | 没有进程在监听：`hotslot doctor` 指出缺少哪个进程，日志说明它为什么退出 |
| `NOT_SERVING`，`hotslot status` 显示某个槽位正在加载 | 等待：模型正在加载；调用方收到 `NOT_READY` 和建议的重试时间 |
| `NOT_SERVING`，模型状态为 FAILED（仍会继续重启） | 它的 runner 失败次数达到 `runner.respawn_give_up` 的规定：先用 `hotslot logs explain` 查明原因；只有确属版本的问题才用 `hotslot updates rollback REV` 回滚，内存不足或设备故障时回滚会隔离一个好的版本（[runbook](../runbooks/model-given-up.md)） |
| `QUEUE_FULL` | 排在已有请求之后会来不及，或请求超过处理能力：客户端会按服务器给出的时间重发；降低请求量、改用流式，或增加服务器（[runbook](../runbooks/queue-long.md)） |
| `DEADLINE_TOO_SHORT` | 即使模型空闲，剩余时间也不够；客户端不会重发：调大超时时间（deadline），或一次少发一些 |
| `POISON_INPUT` | 这个输入会使计算进程崩溃：保留它并上报 |
| 有 GPU 的机器在 CPU 上推理 | 显存不足：释放一些，模型会自动切回 GPU（[runbook](../runbooks/cpu-fallback.md)） |

## 没有更新

| 现象 | 处理 |
|---|---|
| `hotslot updates status`：更新已暂停 | `hotslot updates resume`；回滚也会暂停更新 |
| `hotslot updates status`：没有可跟踪的版本 | `hotslot hub doctor OWNER/NAME` 逐个说明各版本为何采用、忽略或拒绝 |
| `HUB_DENIED`、`TOKEN_UNREADABLE` | 模型仓库拒绝令牌，或没有令牌：更新 `updater.hub_token_file` 所指的文件，每次请求都会重新读取 |
| 熔断器打开 | 会自动重试；`hotslot updates breaker reset NAME`（`hub`、`activation` 或 `device`）立即重试 |
| 版本已被隔离 | 发布更好的版本；若不是它的问题，或回滚有误：`hotslot updates unquarantine DIGEST`，再执行 `hotslot updates resume` |
| `OBSERVING` 超过 `observe.window_seconds`，或金丝雀停在同一比例 | 调用太少，或已比对的结果太少：[试运行持续多久](../how-to/roll-out.md#how-long-a-trial-lasts)（英文）；金丝雀可用 `hotslot updates step` 立即进入下一比例 |
| 状态日志（journal）丢失 | [恢复它](../lost-journal.md)；服务不受影响 |

"""
_HELD_HEAD = """## 更新停在 HELD

原模型继续服务，`COMMITTED_BROKEN` 除外：此时由更早的版本服务。`hotslot updates status` 会显示下列原因之一：

| 原因 | 处理 |
|---|---|
"""
_LOG_HEAD = """
## 日志中的一行

| 事件 | 含义 | 处理 |
|---|---|---|
"""
_APPROVE = "用 `hotslot updates show ID` 比较后执行 `hotslot updates approve DIGEST`，或发布更好的版本"
_RETRY = "然后用 `hotslot updates resume` 重试"
HELD: Mapping[HeldFor, str] = {
    HeldFor.APPROVAL: f"approve 模式需要人工审批：{_APPROVE}",
    HeldFor.AGREEMENT: f"预测结果与当前模型不同，也可能更好：{_APPROVE}",
    HeldFor.NOISE: f"基准集太小，无法下结论：增加带标准答案的条目，或{_APPROVE}",
    HeldFor.SLOWER: f"占用的设备时间或延迟高于当前模型，也可能是机器繁忙：用 `hotslot updates resume` 重试，或{_APPROVE}",
    HeldFor.CHANGED_ANSWERS: "线上预测的变化超出基准集的预期：在 `hotslot updates show ID` 中查看变化方向，把这类问题加入基准集后执行 "
    f"`hotslot updates resume`；若新的预测结果正确，{_APPROVE}",
    HeldFor.LABELS: f"调用方可能依赖这些标签：与当前模型的标签比较，{_APPROVE}",
    HeldFor.NO_GOLDEN: f"用 `hotslot golden record FOLDER --model NAME` 制作基准集，写入 hotslot.toml 并执行 `hotslot reload`，然后用 `hotslot updates resume` 重试；或{_APPROVE}",
    HeldFor.GOLDEN_UNUSABLE: f"修复基准集（`hotslot golden show` 指出问题），或{_APPROVE}",
    HeldFor.DOES_NOT_FIT: f"内存（显存）放不下：释放一些，{_RETRY}",
    HeldFor.INCONCLUSIVE: f"没有得出结论：查看 `hotslot updates show ID`，{_RETRY}",
    HeldFor.CONVERSION: "当前构建无法转换已提交的源文件，现有 bundle 继续服务：`hotslot updates resume` 跳过这次转换",
    HeldFor.SERVER_CRASHED: f"试运行首个版本期间服务器崩溃了三次：查看服务器日志，{_RETRY}",
    HeldFor.TAKEN_BACK: f"控制套接字的另一个客户端结束了试运行：查明是谁，{_RETRY}",
    HeldFor.COMMITTED_BROKEN: "已提交的版本无法再加载，由上一版本服务：发布新版本，然后用 `hotslot updates resume` 采用它",
    HeldFor.DISK_FULL: "为状态目录腾出磁盘空间，或调低 `retained_bytes`：会自动继续，也可用 `hotslot updates resume` 立即继续，已下载的内容会保留",
    HeldFor.MISMATCH: f"模型仓库发送的内容与其清单不符：修复仓库或其前面的代理，或重新发布该版本，{_RETRY}",
    HeldFor.SEEN_BEFORE: "发布者退回了旧内容，或仓库显示的是旧状态：询问发布者；`hotslot updates approve DIGEST` 会让它试运行，更新的内容会自动采用",
    HeldFor.FIRST_CONTACT: "确认它是否比当前模型新；若是，`hotslot updates approve DIGEST` 会让它试运行，之后的版本与它比较",
    HeldFor.STUCK: f"更新步骤数超限：查看 `hotslot updates show ID`，{_RETRY}",
}
LOG: Mapping[str, tuple[str, str]] = {
    "access_warning": ("端口暴露的提醒", "保护端口，或只监听 127.0.0.1"),
    "alerts_lost": ("放弃投递若干告警", "群机器人拒收该消息"),
    "alerts_not_delivered": ("目标没有接受告警", "见 [alert-relay.md](../alert-relay.md)"),
    "alerts_refused": ("一条通知被拒绝", "检查 Alertmanager 的 webhook_configs（[alert-relay.md](../alert-relay.md)）"),
    "background_task_failed": (
        "一项后台任务失败，仍会继续执行",
        "释放文件描述符、内存或磁盘；否则用 `hotslot doctor --archive FILE` 收集信息并上报",
    ),
    "boot_without_model": ("启动时没有模型", "导入一个，或等待首次更新；磁盘故障会自动重试"),
    "breaker_opened": ("熔断器打开", "`hotslot updates breaker reset NAME` 立即重试"),
    "call_crashed": ("一次调用因内部错误失败", "用 `hotslot doctor --archive FILE` 收集信息并上报"),
    "certificate_refused": ("新证书无法使用", "旧证书继续使用；修复文件"),
    "committed_load_failed": ("已提交的 bundle 加载失败", "`hotslot state verify`"),
    "cpu_fallback_file_unusable": ("记录设备的文件无法使用", "删除该文件，会重新写入"),
    "cuda_graphs_unused": ("GPU 调用改为逐个启动内核", "检查空闲显存"),
    "fork_server_failed": ("runner 改为以独立程序启动", "参见 [fork-server](../explanation/decisions/fork-server.md)"),
    "hub_unanswered": ("模型仓库无响应", "用 `hotslot hub doctor MODEL` 查询"),
    "journal_lost": ("状态日志丢失", "见 [lost-journal.md](../lost-journal.md)"),
    "journal_not_written": ("状态日志无法写入", "腾出磁盘空间"),
    "journal_unreadable": ("状态日志无法读取", "见 [lost-journal.md](../lost-journal.md)"),
    "kernels_unused": ("改由 torch 计算，未使用编译内核", "答案相同，速度较慢"),
    "listener_failed": ("端口无法打开", "被其他程序占用；`hotslot config check`"),
    "load_failed": ("某版本在设备上加载失败", "bundle 损坏，或内存不足"),
    "log_lines_dropped": ("此处缺少若干日志行", "读取日志的程序太慢"),
    "loop_crashed": ("更新循环出错，稍后继续", "请上报"),
    "model_given_up": (
        "runner 失败次数达到 runner.respawn_give_up 的规定",
        "从前面的日志行查明原因；只有确属版本的问题才用 `hotslot updates rollback REV` 回滚",
    ),
    "overload_begun": ("请求超过处理能力", "增加服务器，或限制调用方"),
    "process_given_up": ("某程序不再重启", "前面的日志行说明它为何退出"),
    "products_unused": ("改由 torch 做矩阵乘法，未使用 oneDNN", "答案相同，速度较慢；请上报"),
    "revision_republished": ("同名版本的内容变了", "询问发布者；不会安装它"),
    "runner_forks_paused": ("runner 暂时以独立程序启动", "检查空闲内存"),
    "server_refused": ("服务器无法启动", "`hotslot config check`"),
    "settings_invalid": ("设置有误", "`hotslot config check`"),
    "staging_failed": ("下载失败", "会自动重试；`hotslot hub doctor MODEL`"),
    "step_failed": ("更新的一个步骤失败", "会自动重试"),
    "tokens_refused": ("修改后的令牌无法使用", "旧令牌继续使用；修复文件"),
    "unresponsive_process_killed": ("某程序无响应，已重启", "机器是否曾卡死？"),
    "unresponsive_process_given_up": ("某程序无响应", "重启整个 hotslot 服务"),
    "updater_refused": ("更新器无法启动", "`hotslot config check`"),
    "webhook_event_refused": ("接收方永久拒绝了一个事件", "查看接收方的日志"),
    "webhook_events_dropped": ("若干事件被丢弃", "接收方离线太久"),
    "webhook_failed": ("接收方没有接受事件", "会自动重试"),
}


def render() -> str:
    """The page.

    Raises:
        KeyError: an advice of the code is not translated.
    """
    held = "".join(f"| `{reason.name}` | {HELD[reason]} |\n" for reason in HeldFor if reason in HELD_ADVICE)
    events = [name for name, meaning in MEANINGS.items() if meaning.action]
    rows = "".join(f"| `{name}` | {LOG[name][0]} | {LOG[name][1]} |\n" for name in events)
    return HEAD + _HELD_HEAD + held + _LOG_HEAD + rows
