# Builds the addon, the monitor, the guests and the native unit tests with
# node-gyp. CMakeLists.txt builds the same for development; both take their
# sources from native/sources.json.
{
  'variables': {
    # What each program is compiled with scripts/binaries.js knows, too, and looks for. 3 is 2 to a gcc before 12.
    'hardened': [
      '-fstack-protector-strong', '-fstack-clash-protection', '-ftrivial-auto-var-init=zero', '-fcf-protection',
      '-U_FORTIFY_SOURCE', '-D_FORTIFY_SOURCE=3', '-D_GLIBCXX_ASSERTIONS',
    ],
    'without_exceptions': ['-fno-exceptions', '-fno-rtti'],
    # Static programs of our own start. The last one, or gcc makes a call to memset out of the loop in memset.
    'without_libc': [
      '-fPIE', '-fvisibility=hidden', '-fstack-protector-strong', '-mstack-protector-guard=global',
      '-fstack-clash-protection', '-ftrivial-auto-var-init=zero', '-fno-tree-loop-distribute-patterns',
    ],
    # FORTIFY is a libc's, and landing pads are for a kernel that asks for them.
    'bare': ['-fno-asynchronous-unwind-tables', '-fcf-protection=none', '-U_FORTIFY_SOURCE'],
    'closed': ['-Wl,-z,relro,-z,now,-z,noexecstack'],
    'unpack_libraries%': "<!(node scripts/unpack-libraries.js)",
  },

  'target_defaults': {
    'include_dirs': ['native'],
    'cflags': ['-Wall', '-Wextra', '-O2', '-ffunction-sections', '-fdata-sections'],
    # Not in cflags: Node's common.gypi takes -Werror out of there, whoever put it in.
    'cflags_c': ['-std=c11', '-Werror'],
    'cflags_cc': ['-std=c++20', '-Werror'],
    # Of Node's own build; nothing here is part of Node.
    'configurations': { 'Release': { 'cflags!': ['-O3', '-fno-omit-frame-pointer'] } },
    'cflags_cc!': ['-std=gnu++17', '-std=gnu++20', '-std=gnu++23'],
    'ldflags!': ['-rdynamic'],
  },

  'targets': [
    {
      # What the addon and the unit tests have in common.
      'target_name': 'casemate-core',
      'type': 'static_library',
      'sources': ["<!@(node -p \"require('./native/sources.json').core.join(' ')\")"],
      'cflags': ['<@(hardened)', '-fPIC', '-fvisibility=hidden'],
      'cflags_cc': ['<@(without_exceptions)'],
    },
    {
      'target_name': 'casemate',
      'dependencies': ['casemate-core'],
      'sources': ["<!@(node -p \"require('./native/sources.json').addon.join(' ')\")"],
      'defines': ['NAPI_VERSION=9', 'NAPI_CPP_EXCEPTIONS', 'NODE_API_SWALLOW_UNTHROWABLE_EXCEPTIONS'],
      'cflags': [
        '<@(hardened)', '-fPIC', '-fvisibility=hidden',
        '-isystem', "<!@(node -p \"require('node-addon-api').include\")",
      ],
      'cflags_cc!': ['<@(without_exceptions)'],
      'ldflags': ['<@(closed)', '-Wl,--gc-sections'],
    },
    {
      # The monitor: static, without libc, at an address of the kernel's choice.
      'target_name': 'casemate-vmm',
      'type': 'executable',
      'sources': [
        "<!@(node -p \"require('./native/sources.json').machine.join(' ')\")",
        "<!@(node -p \"require('./native/sources.json').vmm.join(' ')\")",
      ],
      'cflags': ['<@(bare)', '<@(without_libc)'],
      'cflags_cc': ['<@(without_exceptions)', '-fno-threadsafe-statics'],
      'cflags!': ['-pthread'],
      'ldflags!': ['-pthread'],
      # noseparate-code: constants share the pages of the code. Every page that a
      # monitor touches at its start costs 5 to 8 us, and this saves two of them.
      'ldflags': [
        '-nostdlib', '-static-pie', '-s', '<@(closed)', '-Wl,-z,noseparate-code', '-Wl,--gc-sections',
      ],
    },
    {
      # The agent in Linux guests, likewise: it runs on whatever the guest has, even nothing.
      'target_name': 'casemate-agent',
      'type': 'executable',
      'sources': ["<!@(node -p \"require('./native/sources.json').agent.join(' ')\")"],
      'cflags': ['<@(bare)', '<@(without_libc)'],
      'cflags_cc': ['<@(without_exceptions)', '-fno-threadsafe-statics'],
      'cflags!': ['-pthread'],
      'ldflags!': ['-pthread'],
      'ldflags': [
        '-nostdlib', '-static-pie', '-s', '<@(closed)', '-Wl,-z,noseparate-code', '-Wl,--gc-sections',
      ],
    },
    {
      # Guests, each of one file, by the command that docs/guest-abi.md gives to users.
      'target_name': 'casemate-guests',
      'type': 'none',
      'variables': {
        'guest_interface': [
          'native/guest/casemate-guest.h', 'native/guest/casemate-guest-abi.h', 'native/guest/casemate-guest.ld',
        ],
      },
      'sources': [
        "<!@(node -p \"require('./native/sources.json').guests.join(' ')\")",
        "<!@(node -p \"require('./native/sources.json').flatGuests.join(' ')\")",
      ],
      'rules': [
        {
          'rule_name': 'guest',
          'extension': 'c',
          'inputs': ['<@(guest_interface)'],
          'outputs': ['<(PRODUCT_DIR)/casemate-guest-<(RULE_INPUT_ROOT).elf'],
          'action': [
            'gcc', '-O2', '-Wall', '-Wextra', '-Werror', '-ffreestanding', '-fno-stack-protector', '-nostdlib',
            '-static', '-no-pie', '-s', '-I', 'native/guest', '-T', 'native/guest/casemate-guest.ld',
            '-o', '<@(_outputs)', '<(RULE_INPUT_PATH)',
          ],
        },
        {
          'rule_name': 'flat_guest',
          'extension': 'S',
          'outputs': ['<(PRODUCT_DIR)/casemate-guest-<(RULE_INPUT_ROOT).bin'],
          'action': [
            'gcc', '-nostdlib', '-static', '-no-pie', '-Wl,-Ttext=0x200000,--oformat=binary,--build-id=none',
            '-o', '<@(_outputs)', '<(RULE_INPUT_PATH)',
          ],
        },
      ],
    },
    {
      'target_name': 'casemate-unit',
      'type': 'executable',
      'dependencies': ['casemate-core'],
      'sources': [
        "<!@(node -p \"require('./native/sources.json').machine.join(' ')\")",
        "<!@(node -p \"require('./native/sources.json').unit.join(' ')\")",
      ],
      'cflags': ['<@(hardened)'],
    },
  ],

  'conditions': [
    ['unpack_libraries=="found"', {
      'targets': [
        {
          # Takes kernels out of bzImages: static, with libc, in a folder of its own, which becomes its root.
          'target_name': 'casemate-unpack',
          'type': 'executable',
          'product_dir': '<(PRODUCT_DIR)/unpack',
          'sources': [
            "<!@(node -p \"require('./native/sources.json').unpack.join(' ')\")",
            "<!@(node -p \"require('./native/sources.json').unpackProgram.join(' ')\")",
          ],
          'cflags': ['<@(hardened)', '-fPIE', '-fvisibility=hidden'],
          'cflags_cc': ['<@(without_exceptions)', '-fno-threadsafe-statics'],
          'cflags!': ['-pthread'],
          'ldflags!': ['-pthread'],
          'ldflags': ['-static-pie', '-s', '<@(closed)', '-Wl,--gc-sections'],
          'libraries': ['-lz', '-llzma', '-lzstd', '-llz4', '-lbz2'],
        },
      ],
    }],
  ],
}
