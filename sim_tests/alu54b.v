// Behaviour of Lattice's ALU54B as this project uses it, after public designs made with Lattice's
// tools (not checked against Lattice's guide, TN1267, or on hardware): sums
// of the products of two MULT18X18D and of input C, by opcode; each register in or out of the path
// (those of the opcode together), one clock and no reset. Anything else stops the simulation.
// Opcode, bits 10 to 7: 0100 A + B + C, 0101 A - B + C, 0110 A + B - C, 0111 A - B - C.
// C by 6 to 4: 000 zero, 011 input C, 101 the last R. B by 3 and 2: 01 MB, 10 input B, 11 zero.
// A by 1 and 0: 00 the last R, 01 MA, 10 input A, 11 zero.
module ALU54B(
    input A35, A34, A33, A32, A31, A30, A29, A28, A27, A26, A25, A24, A23, A22, A21, A20, A19,
    input A18, A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0,
    input B35, B34, B33, B32, B31, B30, B29, B28, B27, B26, B25, B24, B23, B22, B21, B20, B19,
    input B18, B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0,
    input C53, C52, C51, C50, C49, C48, C47, C46, C45, C44, C43, C42, C41, C40, C39, C38, C37,
    input C36, C35, C34, C33, C32, C31, C30, C29, C28, C27, C26, C25, C24, C23, C22, C21, C20,
    input C19, C18, C17, C16, C15, C14, C13, C12, C11, C10, C9, C8, C7, C6, C5, C4, C3, C2, C1,
    input C0,
    input MA35, MA34, MA33, MA32, MA31, MA30, MA29, MA28, MA27, MA26, MA25, MA24, MA23, MA22,
    input MA21, MA20, MA19, MA18, MA17, MA16, MA15, MA14, MA13, MA12, MA11, MA10, MA9, MA8, MA7,
    input MA6, MA5, MA4, MA3, MA2, MA1, MA0,
    input MB35, MB34, MB33, MB32, MB31, MB30, MB29, MB28, MB27, MB26, MB25, MB24, MB23, MB22,
    input MB21, MB20, MB19, MB18, MB17, MB16, MB15, MB14, MB13, MB12, MB11, MB10, MB9, MB8, MB7,
    input MB6, MB5, MB4, MB3, MB2, MB1, MB0,
    input OP10, OP9, OP8, OP7, OP6, OP5, OP4, OP3, OP2, OP1, OP0,
    input SIGNEDIA, SIGNEDIB,
    input CLK0, CE0, RST0,
    output R53, R52, R51, R50, R49, R48, R47, R46, R45, R44, R43, R42, R41, R40, R39, R38, R37,
    output R36, R35, R34, R33, R32, R31, R30, R29, R28, R27, R26, R25, R24, R23, R22, R21, R20,
    output R19, R18, R17, R16, R15, R14, R13, R12, R11, R10, R9, R8, R7, R6, R5, R4, R3, R2, R1,
    output R0);
    parameter REG_INPUTC0_CLK = "NONE";
    parameter REG_INPUTC1_CLK = "NONE";
    parameter REG_OPCODEOP0_0_CLK = "NONE";
    parameter REG_OPCODEOP0_1_CLK = "NONE";
    parameter REG_OPCODEOP1_0_CLK = "NONE";
    parameter REG_OPCODEOP1_1_CLK = "NONE";
    parameter REG_OPCODEIN_0_CLK = "NONE";
    parameter REG_OPCODEIN_1_CLK = "NONE";
    parameter REG_OUTPUT0_CLK = "NONE";
    parameter REG_OUTPUT1_CLK = "NONE";
    parameter REG_FLAG_CLK = "NONE";
    parameter GSR = "ENABLED";
    parameter RESETMODE = "SYNC";

    wire [53:0] a = {{18{SIGNEDIA & A35}},
        {A35, A34, A33, A32, A31, A30, A29, A28, A27, A26, A25, A24, A23, A22, A21, A20, A19,
         A18, A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0}};
    wire [53:0] b = {{18{SIGNEDIB & B35}},
        {B35, B34, B33, B32, B31, B30, B29, B28, B27, B26, B25, B24, B23, B22, B21, B20, B19,
         B18, B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0}};
    wire [53:0] ma = {{18{SIGNEDIA & MA35}},
        {MA35, MA34, MA33, MA32, MA31, MA30, MA29, MA28, MA27, MA26, MA25, MA24, MA23, MA22,
         MA21, MA20, MA19, MA18, MA17, MA16, MA15, MA14, MA13, MA12, MA11, MA10, MA9, MA8, MA7,
         MA6, MA5, MA4, MA3, MA2, MA1, MA0}};
    wire [53:0] mb = {{18{SIGNEDIB & MB35}},
        {MB35, MB34, MB33, MB32, MB31, MB30, MB29, MB28, MB27, MB26, MB25, MB24, MB23, MB22,
         MB21, MB20, MB19, MB18, MB17, MB16, MB15, MB14, MB13, MB12, MB11, MB10, MB9, MB8, MB7,
         MB6, MB5, MB4, MB3, MB2, MB1, MB0}};
    wire [53:0] c = {C53, C52, C51, C50, C49, C48, C47, C46, C45, C44, C43, C42, C41, C40, C39,
                    C38, C37, C36, C35, C34, C33, C32, C31, C30, C29, C28, C27, C26, C25, C24,
                    C23, C22, C21, C20, C19, C18, C17, C16, C15, C14, C13, C12, C11, C10, C9,
                    C8, C7, C6, C5, C4, C3, C2, C1, C0};
    wire [10:0] op = {OP10, OP9, OP8, OP7, OP6, OP5, OP4, OP3, OP2, OP1, OP0};

    reg [53:0] c_register, result;
    reg [10:0] op_first, op_second;
    wire [53:0] c_used = REG_INPUTC0_CLK == "NONE" ? c : c_register;
    wire [10:0] op_piped = REG_OPCODEIN_0_CLK == "NONE" ? op : op_first;
    wire [10:0] op_used = REG_OPCODEIN_1_CLK == "NONE" ? op_piped : op_second;
    wire known = ^op_used !== 1'bx;

    wire [53:0] left = op_used[1:0] == 0 ? result : op_used[1:0] == 1 ? ma :
                       op_used[1:0] == 2 ? a : 0;
    wire [53:0] right = op_used[3:2] == 1 ? mb : op_used[3:2] == 2 ? b : 0;
    wire [53:0] third = op_used[6:4] == 0 ? 0 : op_used[6:4] == 3 ? c_used : result;
    wire [53:0] sum = left + (op_used[7] ? -right : right) + (op_used[8] ? -third : third);
    always @(posedge CLK0) begin
        if (CE0) begin
            c_register <= c;
            op_first <= op;
            op_second <= op_piped;
            result <= sum;
        end
        if (RST0 !== 0 || known && (op_used[10:9] != 1 || op_used[3:2] == 0 ||
                                    op_used[6:4] != 0 && op_used[6:4] != 3 && op_used[6:4] != 5)
            || REG_INPUTC0_CLK != REG_INPUTC1_CLK || REG_OUTPUT0_CLK != REG_OUTPUT1_CLK
            || REG_OPCODEIN_0_CLK != REG_OPCODEOP0_0_CLK
            || REG_OPCODEIN_0_CLK != REG_OPCODEOP1_0_CLK
            || REG_OPCODEIN_1_CLK != REG_OPCODEOP0_1_CLK
            || REG_OPCODEIN_1_CLK != REG_OPCODEOP1_1_CLK) begin
            $display("ALU54B: a mode that this model does not have");
            $fatal;
        end
    end
    assign {R53, R52, R51, R50, R49, R48, R47, R46, R45, R44, R43, R42, R41, R40, R39, R38,
            R37, R36, R35, R34, R33, R32, R31, R30, R29, R28, R27, R26, R25, R24, R23, R22, R21,
            R20, R19, R18, R17, R16, R15, R14, R13, R12, R11, R10, R9, R8, R7, R6, R5, R4, R3,
            R2, R1, R0}
        = REG_OUTPUT0_CLK == "NONE" ? sum : result;
endmodule
