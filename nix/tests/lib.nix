# As much of nixpkgs' lib as nix/ uses, for evaluation where there is no nixpkgs. Its
# module system knows what nix/ needs: imports, options with a type and a default, and
# definitions with conditions and priorities.
let
  inherit (builtins)
    all
    attrNames
    attrValues
    concatLists
    concatMap
    concatStringsSep
    elem
    elemAt
    filter
    foldl'
    functionArgs
    genList
    head
    isAttrs
    isFunction
    isList
    length
    listToAttrs
    map
    mapAttrs
    sort
    stringLength
    substring
    tail
    ;

  lists = rec {
    inherit
      concatMap
      elem
      filter
      head
      length
      sort
      tail
      ;
    optional = condition: value: if condition then [ value ] else [ ];
    optionals = condition: values: if condition then values else [ ];
    imap0 = f: list: genList (n: f n (elemAt list n)) (length list);
    imap1 = f: list: genList (n: f (n + 1) (elemAt list n)) (length list);
    unique = foldl' (seen: value: if elem value seen then seen else seen ++ [ value ]) [ ];
    inherit concatLists;
    take = n: list: genList (elemAt list) (if n < length list then n else length list);
  };

  attrsets = rec {
    inherit
      attrNames
      attrValues
      listToAttrs
      mapAttrs
      ;
    nameValuePair = name: value: { inherit name value; };
    mapAttrsToList = f: set: map (name: f name set.${name}) (attrNames set);
    attrsToList = mapAttrsToList nameValuePair;
    genAttrs = names: f: listToAttrs (map (name: nameValuePair name (f name)) names);
    optionalAttrs = condition: set: if condition then set else { };
  };

  characters = text: genList (n: substring n 1 text) (stringLength text);

  strings = rec {
    inherit concatStringsSep;
    concatStrings = concatStringsSep "";
    concatMapStrings = f: list: concatStrings (map f list);
    concatMapStringsSep =
      separator: f: list:
      concatStringsSep separator (map f list);
    optionalString = condition: text: if condition then text else "";
    toLower =
      let
        upper = characters "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
      in
      builtins.replaceStrings upper (characters "abcdefghijklmnopqrstuvwxyz");
    fixedWidthString =
      width: filler: text:
      if stringLength text >= width then text else fixedWidthString width filler (filler + text);
    hasSuffix =
      suffix: text:
      let
        skip = stringLength text - stringLength suffix;
      in
      skip >= 0 && substring skip (stringLength text) text == suffix;
    hasPrefix = prefix: text: substring 0 (stringLength prefix) text == prefix;
    escapeShellArg = text: "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] (toString text)}'";
    makeBinPath = packages: concatMapStringsSep ":" (package: "${package}/bin") packages;
    fileContents =
      path:
      let
        text = builtins.readFile path;
      in
      if hasSuffix "\n" text then substring 0 (stringLength text - 1) text else text;
  };

  trivial = {
    inherit isFunction;
    throwIf =
      condition: message: value:
      if condition then throw message else value;
    throwIfNot =
      condition: message: value:
      if condition then value else throw message;
    toHexString =
      number:
      let
        digit = n: substring n 1 "0123456789ABCDEF";
        digits = n: if n < 16 then digit n else digits (n / 16) + digit (n - n / 16 * 16);
      in
      digits number;
  };

  # Definitions.
  properties = {
    mkIf = condition: content: {
      _type = "if";
      inherit condition content;
    };
    mkMerge = contents: {
      _type = "merge";
      inherit contents;
    };
    mkOverride = priority: content: {
      _type = "override";
      inherit priority content;
    };
    mkDefault = properties.mkOverride 1000;
    mkForce = properties.mkOverride 50;
    mkOption = option: option // { _type = "option"; };
  };

  kind = value: if isAttrs value then value._type or "" else "";

  # The plain definitions that a definition stands for.
  discharge =
    value:
    if kind value == "if" then
      lists.optionals value.condition (discharge value.content)
    else if kind value == "merge" then
      concatMap discharge value.contents
    else
      [ value ];

  # The definitions of the highest priority, without it.
  strongest =
    definitions:
    let
      priority = value: if kind value == "override" then value.priority else 100;
      least = foldl' (a: b: if b < a then b else a) 10000 (map priority definitions);
    in
    map (value: if kind value == "override" then value.content else value) (
      filter (value: priority value == least) definitions
    );

  resolve = definitions: strongest (concatMap discharge definitions);

  # A type merges definitions, which are resolved.
  type = name: check: merge: {
    inherit name;
    merge =
      at: definitions:
      let
        bad = filter (value: !check value) definitions;
      in
      if bad == [ ] then
        merge at definitions
      else
        throw "the option ${at} is not of type ${name}: ${builtins.toJSON (head bad)}";
  };
  one =
    at: definitions:
    if all (value: value == head definitions) definitions then
      head definitions
    else
      throw "the option ${at} is defined more than once, differently";
  scalar = name: check: type name check one;

  types = rec {
    bool = scalar "bool" builtins.isBool;
    int = scalar "int" builtins.isInt;
    port = scalar "port" (value: builtins.isInt value && value >= 0 && value < 65536);
    str = scalar "string" builtins.isString;
    path = scalar "path" (_: true);
    package = scalar "package" isAttrs;
    raw = type "raw" (_: true) (_: head);
    lines = type "lines" builtins.isString (_: concatStringsSep "\n");
    enum = values: scalar "one of ${builtins.toJSON values}" (value: elem value values);
    nullOr = inner: {
      name = "null or ${inner.name}";
      merge = at: definitions: if all isNull definitions then null else inner.merge at definitions;
    };
    listOf =
      inner:
      type "list of ${inner.name}" isList (
        at: definitions: map (value: inner.merge at [ value ]) (concatLists definitions)
      );
    attrsOf =
      inner:
      type "attribute set of ${inner.name}" isAttrs (
        at: definitions:
        let
          names = lists.unique (concatMap attrNames definitions);
          given = name: resolve (concatMap (set: lists.optional (set ? ${name}) set.${name}) definitions);
        in
        listToAttrs (
          concatMap (
            name:
            let
              values = given name;
            in
            lists.optional (values != [ ]) (attrsets.nameValuePair name (inner.merge "${at}.${name}" values))
          ) names
        )
      );
    # Whatever it is, merged by what it is.
    anything = {
      name = "anything";
      merge =
        at: definitions:
        if all isAttrs definitions && kind (head definitions) == "" && !(head definitions ? outPath) then
          (attrsOf anything).merge at definitions
        else if all isList definitions then
          concatLists definitions
        else
          one at definitions;
    };
  };

  evalModules =
    {
      modules,
      specialArgs ? { },
    }:
    let
      call =
        module:
        if isFunction module then
          module (
            specialArgs
            // {
              inherit config options lib;
            }
            // mapAttrs (
              name: _:
              specialArgs.${name} or {
                inherit config options lib;
              }
              .${name} or config._module.args.${name}
            ) (removeAttrs (functionArgs module) [ "lib" ])
          )
        else if isAttrs module then
          module
        else
          call (import module);

      whole =
        module:
        let
          value = call module;
        in
        if value ? config || value ? options then
          {
            imports = value.imports or [ ];
            options = value.options or { };
            config = value.config or { };
          }
        else
          {
            imports = value.imports or [ ];
            options = { };
            config = removeAttrs value [
              "imports"
              "_file"
              "key"
            ];
          };

      flatten =
        list:
        concatMap (
          module:
          let
            value = whole module;
          in
          [ value ] ++ flatten value.imports
        ) list;

      all' = flatten modules;

      declare =
        left: right:
        left
        // mapAttrs (
          name: value: if left ? ${name} && kind value != "option" then declare left.${name} value else value
        ) right;
      options = foldl' declare {
        _module.args = properties.mkOption {
          type = types.attrsOf types.raw;
          default = { };
        };
      } (map (module: module.options) all');

      # The value of each option below a declaration, from the definitions there.
      build =
        at: declared: definitions:
        let
          plain = concatMap discharge definitions;
          unknown = filter (name: !(declared ? ${name})) (concatMap attrNames plain);
          below = name: concatMap (set: lists.optional (set ? ${name}) set.${name}) plain;
          name' = name: if at == "" then name else "${at}.${name}";
        in
        if unknown != [ ] then
          throw "The option `${name' (head unknown)}' does not exist."
        else
          mapAttrs (
            name: option:
            if kind option != "option" then
              build (name' name) option (below name)
            else
              let
                given = resolve (below name);
              in
              (option.apply or (value: value)) (
                if given != [ ] then
                  (option.type or types.raw).merge (name' name) given
                else
                  option.default or (throw "The option `${name' name}' is used but not defined.")
              )
          ) declared;

      config = build "" options (map (module: module.config) all');
    in
    {
      inherit config options;
    };

  lib =
    lists
    // attrsets
    // strings
    // trivial
    // properties
    // {
      inherit types evalModules;
      generators.toKeyValue =
        _: set:
        strings.concatStrings (
          attrsets.mapAttrsToList (
            name: value:
            "${name}=${if builtins.isBool value then (if value then "true" else "false") else toString value}\n"
          ) set
        );
      # A set of files says whether a path, of what type, is in it.
      fileset = rec {
        set =
          files:
          if isFunction files then files else path: _: strings.hasPrefix "${toString files}/" "${path}/";
        unions =
          sets: path: type:
          builtins.any (files: set files path type) sets;
        fileFilter =
          filter: root: path: type:
          type == "regular" && set root path type && filter (file path);
        file = path: rec {
          name = baseNameOf path;
          hasExt = extension: strings.hasSuffix ".${extension}" name;
        };
        toSource =
          { root, fileset }:
          builtins.path {
            name = "source";
            path = root;
            # Which directories have nothing of the set is known too late: they are there, empty.
            filter =
              path: type:
              type == "directory"
              && !(elem (baseNameOf path) [
                ".git"
                "out"
                "bin"
              ])
              || set fileset path type;
          };
      };
      licenses.mit = {
        shortName = "mit";
      };
    };
in
lib
