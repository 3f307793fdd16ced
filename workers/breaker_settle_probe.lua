-- Take a probe's verdict. A lapsed probe still counts until another one has its lease.
-- ARGV[2] generation   ARGV[3] token   ARGV[4] verdict   ARGV[5] open_for in milliseconds
if number('generation') == tonumber(ARGV[2]) and facts['probe'] == ARGV[3] then
  if ARGV[4] == 'abstained' then
    redis.call('HDEL', KEYS[1], 'probe', 'probe_until')
    load()
  else
    move(ARGV[4] == 'succeeded' and 0 or tonumber(ARGV[5]))
  end
end
return snapshot()
