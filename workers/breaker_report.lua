-- Count verdicts of one generation and open if they say so.
-- ARGV[2] generation         ARGV[3] calls              ARGV[4] failures
-- ARGV[5] leading timeouts   ARGV[6] longest run        ARGV[7] trailing timeouts
-- ARGV[8] consecutive_timeouts   ARGV[9] failure_rate   ARGV[10] minimum_calls
-- ARGV[11] open_for in milliseconds
local function argument(i) return tonumber(ARGV[i]) end

if state() == 'closed' and number('generation') == argument(2) then
  local new_calls, new_failures = argument(3), argument(4)
  local run, trailing = number('run'), argument(7)
  local longest = math.max(run + argument(5), argument(6))

  local slot = bucket % BUCKETS
  local index, calls, failures = counts(slot)
  if index ~= bucket then calls, failures = 0, 0 end
  local kept = string.format('%d %d %d', bucket, calls + new_calls, failures + new_failures)
  redis.call('HSET', KEYS[1],
    'b' .. slot, kept,
    'run', new_calls > new_failures and trailing or run + trailing)
  redis.call('EXPIRE', KEYS[1], FORGET_CLOSED_AFTER_S)
  load()

  local total, failed = window()
  local too_many = total >= argument(10) and failed / total >= argument(9)
  if longest >= argument(8) then
    move(argument(11), string.format('%d timeouts in a row', longest))
  elseif too_many then
    move(argument(11), string.format('%d of %d calls failed', failed, total))
  end
end
return snapshot()
