"""What runs inside Redis, each as one step that nothing can interrupt: Lua, and how it is called.

Keys, all behind the cluster's key prefix:

    <queue>, <queue><sep>3, ...   the lists of kombu, one for each priority; the right end is the head
    <queue><sep>wake              a list with at most one element, for a few seconds: "somebody should look"
    unacked.<owner>               hash, receipt -> entry: the messages that a consumer process holds
    unacked_owners                sorted set, owner -> last seen (unix seconds of the server)

An entry is `<unix microseconds> NUL <list key> NUL <payload>`: the payload is kept byte for byte, because Lua's
JSON would change it (`{}` becomes `[]`, long numbers lose digits).
"""

from __future__ import annotations

import hashlib
from typing import Any

from redis import exceptions

from limetaskd.errors import LimetaskError

SEPARATOR = "\x06\x16"  # kombu's, between a queue and its priority
WAKE_S = 10  # a wake-up is worth nothing later: consumers look by themselves every second
SEEN_S = 5  # how often an owner that pops is written down anew


class ScriptingRefusedError(LimetaskError):
    """This Redis user may not run scripts: limetaskd needs EVAL and EVALSHA to move messages without losing any."""


class Script:
    """Lua text and its digest. Calls name every key in full: nothing adds a prefix."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()

    def run(self, client: Any, keys: list[str], args: list[Any]) -> Any:
        """Run it. Raises ScriptingRefusedError, and what redis raises."""
        try:
            return client.evalsha(self.sha, len(keys), *keys, *args)
        except exceptions.NoScriptError:
            # A server that started anew has forgotten it; EVAL teaches it again.
            return client.eval(self.text, len(keys), *keys, *args)
        except exceptions.ResponseError as error:
            raise refusal(error) or error from error


def refusal(error: Exception) -> ScriptingRefusedError | None:
    """The error to raise when `error` says that scripts are forbidden, else None."""
    text = str(error)
    if isinstance(error, exceptions.NoPermissionError) or "unknown command" in text.lower():
        return ScriptingRefusedError(
            f"the broker refuses scripts ({text}): limetaskd moves messages by Lua so that none is lost; allow it with "
            "ACL SETUSER <name> +eval +evalsha, on all keys of its prefix"
        )
    return None


# LPUSH comes first: a server that is full refuses it, and then nothing was done. Everywhere else a command that
# frees memory comes first, which lets a full server finish the script: consuming must go on there.
_WAKE = f"""
local function wake(key)
  if redis.call('EXISTS', key) == 0 then
    redis.call('LPUSH', key, '1')
    redis.call('EXPIRE', key, {WAKE_S})
  end
end
"""

# KEYS: list, wake, then (when the queue expires) all its lists. ARGV: payload, life of the queue in ms or 0.
PUSH = Script(
    _WAKE
    + """
redis.call('LPUSH', KEYS[1], ARGV[1])
wake(KEYS[2])
for i = 3, #KEYS do
  redis.call('PEXPIRE', KEYS[i], ARGV[2])
end
return 1
"""
)

# KEYS: unacked, owners, then the lists (priority by priority, queue by queue), then the wake lists (queue by queue).
# ARGV: receipt, owner, number of queues, then for each queue 1 (record it) or 0 (its consumer acknowledges nothing).
# Returns the entry, or false when all lists are empty. A message that leaves others behind wakes the next consumer.
POP = Script(
    _WAKE
    + f"""
local queues = tonumber(ARGV[3])
local steps = (#KEYS - 2) / queues - 1
for step = 0, steps - 1 do
  for queue = 1, queues do
    local list = KEYS[2 + step * queues + queue]
    local payload = redis.call('RPOP', list)
    if payload then
      local now = redis.call('TIME')
      local seconds = tonumber(now[1])
      local entry = string.format('%d%06d', seconds, tonumber(now[2])) .. '\\0' .. list .. '\\0' .. payload
      if ARGV[3 + queue] == '1' then
        redis.call('HSET', KEYS[1], ARGV[1], entry)
        local seen = tonumber(redis.call('ZSCORE', KEYS[2], ARGV[2]) or '0')
        if seconds - seen >= {SEEN_S} then
          redis.call('ZADD', KEYS[2], seconds, ARGV[2])
        end
      end
      local lists = {{}}
      for i = 0, steps - 1 do
        lists[i + 1] = KEYS[2 + i * queues + queue]
      end
      if redis.call('EXISTS', unpack(lists)) > 0 then
        wake(KEYS[2 + steps * queues + queue])
      end
      return entry
    end
  end
end
for queue = 1, queues do
  redis.call('DEL', KEYS[2 + steps * queues + queue])
end
return false
"""
)

# KEYS: unacked, list, wake. ARGV: receipt, payload. Back to the head of its queue, once, whoever else tries.
RESTORE = Script(
    _WAKE
    + """
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('RPUSH', KEYS[2], ARGV[2])
wake(KEYS[3])
return 1
"""
)

# KEYS: wake, lists of one queue. Somebody took a wake-up and did not use it.
NUDGE = Script(
    _WAKE
    + """
local lists = {}
for i = 2, #KEYS do
  lists[i - 1] = KEYS[i]
end
if redis.call('EXISTS', unpack(lists)) > 0 then
  wake(KEYS[1])
end
"""
)

# KEYS: unacked, owners. ARGV: owner. An owner is known as long as it holds something.
FORGET = Script(
    """
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('ZREM', KEYS[2], ARGV[1])
end
"""
)

# KEYS: unacked, owners. ARGV: owner. Still here.
TOUCH = Script(
    """
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('ZADD', KEYS[2], redis.call('TIME')[1], ARGV[1])
end
"""
)

# KEYS: an unacked hash, then the lists of one queue. How many messages of that queue the owner of the hash holds.
HELD = Script(
    """
local count = 0
for _, entry in ipairs(redis.call('HVALS', KEYS[1])) do
  local list = string.match(entry, '^%d+%z([^%z]*)%z')
  for i = 2, #KEYS do
    if KEYS[i] == list then
      count = count + 1
    end
  end
end
return count
"""
)

# KEYS: lists. Returns for each its length and the `__sent_at` of its head ('' when it does not say): the payload,
# which may be large, stays where it is. Quotes inside a body are escaped, so the first match is the header.
DEPTHS = Script(
    """
local found = {}
for i, list in ipairs(KEYS) do
  local sent = ''
  local head = redis.call('LINDEX', list, -1)
  if head then
    local _, stop = string.find(head, '"__sent_at"', 1, true)
    if stop then
      sent = string.match(head, '^%s*:%s*"?([%d.]+)', stop + 1) or ''
    end
  end
  found[#found + 1] = redis.call('LLEN', list)
  found[#found + 1] = sent
end
return found
"""
)
