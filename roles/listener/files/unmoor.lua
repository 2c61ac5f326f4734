-- Says which address and port the client dialled.
--
-- nginx takes these from its configuration ($server_addr) when a socket is bound to one address, and asks the kernel
-- only when it is bound to all. Our sockets are bound to loopback addresses and get connections to every address of
-- the prefixes, so the kernel is asked here: getsockname() on the connection.
local ffi = require "ffi"
local base = require "resty.core.base"

ffi.cdef[[
int getsockname(int fd, void *address, uint32_t *length);
const char *inet_ntop(int family, const void *source, char *text, uint32_t size);
]]

-- Where nginx keeps what is needed: the request begins with a signature and the connection, the connection's
-- descriptor stands behind three pointers.
local SIGNATURE = 0x50545448 -- 'HTTP'
local FAMILIES = { [2] = { start = 4 }, [10] = { start = 8 } } -- AF_INET, AF_INET6: where the address begins

local address = ffi.new("uint8_t[28]")
local length = ffi.new("uint32_t[1]")
local text = ffi.new("char[46]")

local function dialled()
    local request = ffi.cast("uint64_t *", base.get_request())
    if bit.band(tonumber(request[0] % 0x100000000), 0xffffffff) ~= SIGNATURE then
        return nil
    end
    local connection = ffi.cast("int *", ffi.cast("uint8_t *", request[1]) + 24)
    length[0] = 28
    if ffi.C.getsockname(connection[0], address, length) ~= 0 then
        return nil
    end
    local family = FAMILIES[address[0] + address[1] * 256]
    if family == nil then
        return nil
    end
    ffi.C.inet_ntop(address[0], address + family.start, text, 46)
    return ffi.string(text), address[2] * 256 + address[3]
end

local unmoor = {}

function unmoor.answer()
    local host, port = dialled()
    if host == nil then
        ngx.status = 500
        ngx.say("the dialled address is not known")
        return
    end
    ngx.header["Unmoor-Address"] = host
    ngx.header["Unmoor-Port"] = port
    ngx.say(ngx.var.unmoor_edge, " answered on ", host, " port ", port)
end

return unmoor
